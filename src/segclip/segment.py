"""Segmenter: a photo and the words for what is in it -> a label per pixel.

Axes: H W pixels, K labels, E embedding.
"""

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from segclip import checkpoints, open_protocol, paper_protocol
from segclip.data.photos import PhotoSource, open_photo, paper_size, resize_photo
from segclip.label_text import LabelEmbedder
from segclip.labels import CONTRAST_WORDS, OPEN_TEMPLATES, PAPER_TEMPLATES, check_labels
from segclip.model.segclip import MAX_SCALE, SegCLIP
from segclip.open_protocol import Background
from segclip.paper_protocol import paper_scores
from segclip.segmentation import Found, Segmentation
from segclip.windows import Windows, encode_windows

__all__ = [
    "PAPER_BACKGROUND",
    "PROTOCOLS",
    "Background",
    "Found",
    "Protocol",
    "Segmentation",
    "Segmenter",
    "paper_scores",
]

Protocol = Literal["open", "paper"]
# Photos of one call differ in size: their axes have no common names.
AnyPhoto = UInt8[ndarray, "_ _ 3"]
Labelled = tuple[Int[ndarray, "_ _"], Float[ndarray, "_ _"]]  # labels and scores of a photo
PROTOCOLS: tuple[Protocol, ...] = ("open", "paper")
# What "auto" means under "paper", which wants a threshold per set of labels: the middle one of its three (COCO-Object).
PAPER_BACKGROUND = 0.65


class Segmenter:
    """Segments photos with a model; remembers the embedding of every label it has seen.

    Args:
        model: a SegCLIP (put into evaluation mode), or what `segclip.load` takes.
        protocol: "open", for people: any number of labels, edges that follow the photo; or "paper", the evaluation of
            arXiv 2211.14813 to the letter.

    Raises:
        ValueError: an unknown protocol, or a model that cannot be loaded.
    """

    def __init__(self, model: SegCLIP | str | os.PathLike, protocol: Protocol = "open") -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
        self.model = (model if isinstance(model, SegCLIP) else checkpoints.load(model)).eval()
        self.protocol: Protocol = protocol
        self._embed = LabelEmbedder(self.model)

    def segment(self, photo: PhotoSource, labels: Sequence[str], *, background: Background = "auto") -> Segmentation:
        """Segment one photo.

        Args:
            photo: a path, a PIL image, or RGB uint8 (H,W,3), 0-255; of any size and shape.
            labels: what to look for; label i of the result is the i-th of them, counted from 1.
            background: "auto": the protocol's own way ("open": contrast words that win against the labels; "paper":
                the threshold `PAPER_BACKGROUND`); a number in 0..1: where the best label's probability is below it;
                None: every pixel gets a label.

        Raises:
            PhotoError: a photo that cannot be read.
            ValueError: labels or background that cannot be used.
        """
        return self.segment_batch([photo], labels, background=background)[0]

    def segment_batch(
        self, photos: Sequence[PhotoSource], labels: Sequence[str], *, background: Background = "auto"
    ) -> list[Segmentation]:
        """Segment photos together: their windows fill common batches. Arguments, errors: see `segment`."""
        names = tuple(check_labels(labels))
        _check_background(background)
        pixels = [open_photo(photo) for photo in photos]
        label_pixels = self._label_paper if self.protocol == "paper" else self._label_open
        return [
            Segmentation(found, scores, names, photo, self.protocol, background)
            for photo, (found, scores) in zip(pixels, label_pixels(pixels, names, background), strict=True)
        ]

    def segment_embeddings(
        self, photo: PhotoSource, class_embeds: Float[Tensor, "K E"], background: float | None = None
    ) -> Int[ndarray, "H W"]:
        """The paper's protocol for given class embeddings, whatever this Segmenter's own.

        Args:
            photo: as for `segment`.
            class_embeds: (K,E), an embedding per class; normalised here.
            background: the threshold; None: there is no background.

        Returns:
            (H,W): 0 the background, i the i-th class.
        """
        _check_background(background)
        pixels = [open_photo(photo)]
        embeds = torch.as_tensor(class_embeds, dtype=torch.float32)
        return self._label_by_paper(pixels, embeds.to(self._device), background)[0][0]

    def _label_paper(self, photos: list[AnyPhoto], names: tuple[str, ...], background: Background) -> list[Labelled]:
        threshold = PAPER_BACKGROUND if background == "auto" else background
        return self._label_by_paper(photos, self._embed(names, PAPER_TEMPLATES), threshold)

    @torch.inference_mode()
    def _label_by_paper(
        self, photos: list[AnyPhoto], class_embeds: Float[Tensor, "K E"], threshold: float | None
    ) -> list[Labelled]:
        side = self._side
        views = [Windows.cut(resize_photo(p, paper_size(p.shape[0], p.shape[1], side)), side, side) for p in photos]
        outputs = encode_windows(self.model, views)
        return [
            _arrays(*paper_protocol.label_photo(view, output, class_embeds, self._scale, photo.shape[:2], threshold))
            for photo, view, output in zip(photos, views, outputs, strict=True)
        ]

    @torch.inference_mode()
    def _label_open(self, photos: list[AnyPhoto], names: tuple[str, ...], background: Background) -> list[Labelled]:
        labels = self._embed(names, OPEN_TEMPLATES)
        contrast = labels[:0]
        if background is not None:
            words = self._embed(CONTRAST_WORDS, OPEN_TEMPLATES)
            contrast = open_protocol.competitors(labels, names, words, CONTRAST_WORDS)
        views = [open_protocol.cut_windows(photo, self._side) for photo in photos]
        outputs = iter(encode_windows(self.model, [view for scales in views for view in scales]))
        return [
            _arrays(
                *open_protocol.label_photo(
                    photo, scales, [next(outputs) for _ in scales], labels, contrast, self._scale, background
                )
            )
            for photo, scales in zip(photos, views, strict=True)
        ]

    @property
    def _side(self) -> int:
        return self.model.config.image.side

    @property
    def _scale(self) -> float:
        return float(self.model.logit_scale.detach().exp().clamp(max=MAX_SCALE))

    @property
    def _device(self) -> torch.device:
        return self.model.logit_scale.device


def _check_background(background: Background) -> None:
    number = isinstance(background, int | float) and not isinstance(background, bool)
    if not (background is None or background == "auto" or (number and 0 <= background <= 1)):
        raise ValueError(f'background {background!r}; expected "auto", None or a threshold in 0..1')


def _arrays(labels: Int[Tensor, "H W"], scores: Float[Tensor, "H W"]) -> Labelled:
    return labels.cpu().numpy().astype(np.int32), scores.float().cpu().numpy()
