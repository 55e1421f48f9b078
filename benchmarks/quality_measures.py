"""What a photo's things get when they are asked for: the measures behind mini_quality.py, functions of arrays alone.

In a truth 0 is the background, above it are the classes of things, and IGNORED is where nobody labelled; in a label
map 0 is the background and i the i-th label asked for.
"""

import random
import zlib
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Integer

from segclip.evaluate.datasets.benchmark import IGNORED, Mask

MAIN_SHARE = 0.05  # of a photo, that its main thing covers at least
AMONG = 10  # names that the main thing is asked for among


def iou_of(found: Bool[np.ndarray, "H W"], truth: Mask, wanted: int) -> float:
    """Intersection over union of what was found and a class that the truth has, where somebody labelled the photo."""
    seen = truth != IGNORED
    right = truth == wanted
    return float((found & right).sum() / ((found & seen) | right).sum())


def ious_of(labels: Integer[np.ndarray, "H W"], truth: Mask, wanted: Sequence[int]) -> list[float]:
    """The IoU of each label of a label map; `wanted` are their classes, in order, all of which the truth has."""
    return [iou_of(labels == i, truth, one) for i, one in enumerate(wanted, start=1)]


def main_thing(truth: Mask) -> int | None:
    """The thing that covers most of a photo; None where none covers MAIN_SHARE of it."""
    areas = np.bincount(truth.ravel(), minlength=IGNORED + 1)
    areas[[0, IGNORED]] = 0
    largest = int(areas.argmax())
    return largest if areas[largest] >= MAIN_SHARE * truth.size else None


def draw_among(key: str, main: int, present: Collection[int], classes: int) -> list[int]:
    """AMONG classes in a chance order: the main thing, and others that the photo lacks; fewer where the set has fewer.

    Args:
        key: the photo's name, which alone seeds the draw: the same in every run.
        main: class of the main thing.
        present: classes in the photo.
        classes: of the set, with the background.
    """
    generator = random.Random(zlib.crc32(key.encode()))
    absent = [i for i in range(1, classes) if i not in present]
    drawn = [main, *generator.sample(absent, min(AMONG - 1, len(absent)))]
    generator.shuffle(drawn)
    return drawn


def answered(labels: Integer[np.ndarray, "H W"], count: int) -> list[bool]:
    """Whether each of `count` labels has a pixel in a label map."""
    return [bool(area) for area in np.bincount(labels.ravel(), minlength=count + 1)[1:]]
