"""Where a model's errors come from: in finding what is there, in naming, or in grouping.

Of photos with masks whose class 0 is the background, pooled over all photos:
  told     asked for the classes that a photo has, over the pixels of things
  named    asked for all names, over the same pixels
  regions  with the best name for each region of a window, over all pixels
"""

from collections.abc import Sequence

import numpy as np

from segclip.evaluate.datasets.benchmark import IGNORED, Mask
from segclip.evaluate.evaluator import Evaluator
from segclip.evaluate.metrics import Confusion
from segclip.segment.segmenter import EncodedPhoto


class Diagnosis:
    """The three counts.

    Args:
        evaluator: of the model, on a benchmark with a background.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.told, self.named, self.regions = (Confusion(len(evaluator.benchmark.names)) for _ in range(3))

    def add(self, encoded: EncodedPhoto, truth: Mask) -> None:
        """Count a photo."""
        things, present = things_of(truth)
        if present:
            self.told.add(things, self.evaluator.label_among(encoded, present))
            self.named.add(things, self.evaluator.label_among(encoded, range(1, len(self.evaluator.benchmark.names))))
        self.regions.add_counts(self.evaluator.count_regions(encoded, truth))


def things_of(truth: Mask) -> tuple[Mask, Sequence[int]]:
    """A mask without its background, which is ignored, and the classes that are left."""
    things = np.where(truth == 0, IGNORED, truth).astype(np.uint8)
    return things, [int(i) for i in np.unique(things) if i != IGNORED]
