"""What refining by the photo gains and costs: python benchmarks/refinement.py SET_FOLDER [MODEL] [--every 4]

SET_FOLDER is what `segclip evaluate folder --root` takes. Under the protocol `dense`, each photo is encoded once and
labelled three times: as drawn; refined by PAMR, 10 steps with dilations 8 and 16; by a vote of superpixels, with the
settings of `open`.
Prints for each, pooled over all photos, and the median seconds of a processor's core that labelling a photo took:
  told   given the photo's own labels, over their pixels: mIoU and pixel accuracy
  words  given them and words for the background, those of PASCAL VOC, over all pixels: the same; only of a set with one
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from segclip import Segmenter
from segclip.evaluate.datasets.benchmark import IGNORED, Mask
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.datasets.voc2012 import SCLIP_BACKGROUND
from segclip.evaluate.diagnosis import things_of
from segclip.evaluate.evaluator import Evaluator, cut_batches, words_of
from segclip.evaluate.metrics import Confusion
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.protocols.dense import DenseProtocol, Drawing
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.protocols.protocol import EmbeddedLabels
from segclip.segment.windows import resize_map

OPEN = OpenProtocol()


class Voting(DenseProtocol):
    """With the superpixels of `open` in place of PAMR: a pixel's cosines are mixed with its superpixel's means."""

    def _refine(self, photo: EncodedPhoto, drawn: Drawing) -> Drawing:
        superpixels = OPEN.find_superpixels(photo)
        ids = superpixels.flatten()
        maps = torch.cat([logits for _, logits in drawn.bands()]).transpose(0, 1)
        maps = resize_map(maps, (superpixels.shape[0], superpixels.shape[1])).flatten(1).T
        area = ids.bincount()[:, None]
        means = maps.new_zeros(len(area), maps.shape[1]).index_add_(0, ids, maps) / area
        voted = torch.lerp(maps, means[ids], OPEN.vote)
        voted = resize_map(voted.T.unflatten(1, superpixels.shape), photo.size)
        return replace(drawn, logits=voted.transpose(0, 1), down=None)


VARIANTS: dict[str, DenseProtocol] = {
    "as drawn": DenseProtocol(),
    "PAMR": DenseProtocol(pamr=10),
    "superpixel vote": Voting(pamr=1),
}


@dataclass
class Measured:
    """Counts of pixels and seconds of a variant."""

    counts: Confusion
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"mIoU {self.counts.miou():.4f}, pixel accuracy {self.counts.pixel_accuracy():.4f}, "
            f"{statistics.median(self.seconds):.2f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="What refining a label map by the photo gains and costs.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="take every K-th photo")
    options = parser.parse_args()
    photos = open_folder(options.folder)
    photos = replace(photos, pairs=photos.pairs[:: options.every])
    segmenter = Segmenter(options.model, DenseProtocol(), device="cpu")
    evaluator = Evaluator(segmenter, photos, words_of(photos))
    names = [name for name in photos.names if name != "background"]
    known = {name.casefold() for name in names}
    around = [word for word in SCLIP_BACKGROUND if word not in known] if photos.background else []
    with torch.inference_mode():
        embeds = segmenter.protocol.embed_labels((*names, *around), LabelEmbedder(segmenter.model)).labels
    asks = {"told": Ask(embeds[: len(names)], 0, photos.background)}
    if around:
        asks["words"] = Ask(embeds, len(around), True)
    measured = {(ask, name): Measured(Confusion(len(photos.names))) for ask in asks for name in VARIANTS}
    batches = cut_batches(photos.pairs)
    for batch in track(evaluator.encode(batches), options.folder.name, total=len(batches)):
        for _, encoded, truth in batch:
            for (ask, name), own in measured.items():
                asks[ask].measure(own, VARIANTS[name], encoded, truth)
    print(f"{options.model}, {len(photos.pairs)} photos of {options.folder.name}, {torch.get_num_threads()} thread(s)")
    for (ask, name), own in measured.items():
        print(f"{ask}, {name}: {own}")


@dataclass(frozen=True)
class Ask:
    """What is asked of each photo.

    Attributes:
        embeds: of all names, then of the words for the background.
        around: how many these words are; with some, the background counts too.
        background: whether class 0 of the set is the background, and so the first name is class 1.
    """

    embeds: Float[Tensor, "W E"]
    around: int
    background: bool

    @torch.inference_mode()
    def measure(self, own: Measured, protocol: DenseProtocol, encoded: EncodedPhoto, truth: Mask) -> None:
        """Label a photo and count it."""
        first = int(self.background)
        present = _present(truth, first)
        if not present:
            return
        words = torch.tensor([i - first for i in present])
        rest = torch.arange(len(self.embeds) - self.around, len(self.embeds))
        owners = (*range(len(present)), *[len(present)] * self.around)
        labels = EmbeddedLabels(self.embeds[torch.cat([words, rest])], owners=owners, background=self.around > 0)
        start = time.process_time()
        found = protocol.label_photo(encoded, labels, None, None, 1.0).labels
        own.seconds.append(time.process_time() - start)
        classes = np.array([0, *present, 0], np.uint8)[found.numpy()]
        own.counts.add(truth if self.around or not self.background else things_of(truth)[0], classes)


def _present(truth: Mask, first: int) -> Sequence[int]:
    return [int(i) for i in np.unique(truth) if first <= i < IGNORED]


if __name__ == "__main__":
    main()
