"""The open protocol, for everyday use: any labels, each found or said to be absent, edges that follow the photo.

The photo is encoded whole, at its own shape. Which labels are in it at all, its embedding says. Where a label is best
said, regions and patches say: these patches are its seeds. How far it extends, the trunk's features say, by which the
patches of a thing are alike. Edges are those of superpixels.

Axes: B windows, P patches, R S rows and columns of patches, D width, E embedding, K labels, H W pixels of the photo,
h w pixels of its superpixels.
"""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from segclip.data.superpixels import without_gaps
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols.checks import check_positive, check_share, check_templates
from segclip.segment.protocols.protocol import EmbedTexts, LabelMap
from segclip.segment.windows import Windows, fit_size
from segclip.text.prompts import OPEN_TEMPLATES


@dataclass(frozen=True)
class OpenProtocol:
    scale: float = 2.0
    templates: tuple[str, ...] = OPEN_TEMPLATES

    needs_patches: ClassVar[bool] = True

    def cut_photo(self, photo, side, patch): ...
    def embed_labels(self, names, embed): ...
    def label_photo(self, photo, labels, background, presence, scale): ...
    def for_benchmark(self, name):
        return self
