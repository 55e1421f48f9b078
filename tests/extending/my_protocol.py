"""A protocol: python my_protocol.py segment photo.jpg --labels cat dog --protocol squeezed --out OUT"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from PIL import Image

from segclip.cli import main
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols import PROTOCOLS
from segclip.segment.protocols.paper import paper_scores
from segclip.segment.protocols.protocol import EmbeddedLabels, EmbedTexts, LabelMap
from segclip.segment.windows import Windows


@dataclass(frozen=True)
class Squeezed:
    """The whole photo in one square window; `floor` is the lowest score that is not background."""

    floor: float = 0.0

    needs_patches: ClassVar[bool] = False

    def cut_photo(self, photo: AnyPhoto, side: int, patch: int) -> list[Windows]:
        square = np.asarray(Image.fromarray(photo).resize((side, side)))
        return [Windows.cut(square, (side, side), (side, side))]

    def embed_labels(self, words: tuple[str, ...], embed: EmbedTexts) -> EmbeddedLabels:
        return EmbeddedLabels(embed(words, ("a {}",)))

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        floor = self.floor if background == "auto" else background or 0.0
        (windows,), (output,) = photo.windows, photo.outputs
        scores = paper_scores(output, labels.labels, scale, windows.window)
        best, winner = F.interpolate(scores, photo.size, mode="bilinear")[0].max(dim=0)
        there = best.new_ones(len(labels.labels))  # every label is taken to be in the photo
        return LabelMap((winner + 1).masked_fill(best < floor, 0), best, there)

    def for_benchmark(self, name: str) -> "Squeezed":
        return self


PROTOCOLS["squeezed"] = Squeezed()

if __name__ == "__main__":
    sys.exit(main())
