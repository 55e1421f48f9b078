"""Segmenter: a photo and the words for what is in it -> a label per pixel.

Axes: H W pixels, K labels, E embedding.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from segclip.checkpoints import loading as checkpoints
from segclip.data.photos import PhotoSource, open_photo
from segclip.model.segclip import MAX_SCALE, ImageOutput, SegCLIP
from segclip.segment.encoder import DType, Encoder
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.protocols import open as open_protocol
from segclip.segment.protocols import paper as paper_protocol
from segclip.segment.protocols.open import Background, OpenSettings
from segclip.segment.protocols.paper import PaperSettings, paper_scores
from segclip.segment.protocols.table import PROTOCOLS, Protocol, Settings, settings_of
from segclip.segment.result import Found, Segmentation
from segclip.segment.windows import Windows, encode_windows
from segclip.text.contrast_words import CONTRAST_WORDS
from segclip.text.labels import check_labels
from segclip.utils.devices import pick_device

__all__ = [
    "PROTOCOLS",
    "Background",
    "EncodedPhoto",
    "Found",
    "Protocol",
    "Segmentation",
    "Segmenter",
    "paper_scores",
]

LABEL_SETS = 8  # whose text is remembered whole, the least recently used dropped first
# Photos of one call differ in size: their axes have no common names.
AnyPhoto = UInt8[ndarray, "_ _ 3"]


@dataclass(frozen=True)
class EncodedPhoto:
    """A photo and what the model made of it, before any label: `Segmenter.label` takes it as often as one likes.

    Attributes:
        photo: RGB uint8 (H,W,3), 0-255.
        views: the photo in windows, at each scale of the protocol.
        outputs: of the model, for each view.
        settings: of the protocol.
    """

    photo: AnyPhoto
    views: list[Windows]
    outputs: list[ImageOutput]
    settings: Settings

    @cached_property
    def superpixels(self) -> Int[Tensor, "_ _"]:
        """An id per pixel of the photo scaled down; of the open protocol alone."""
        assert isinstance(self.settings, OpenSettings)
        return open_protocol.find_superpixels(self.photo, self.settings)


class Segmenter:
    """Segments photos with a model; remembers the embedding of every label it has seen.

    It can be pickled, for workers in processes of their own.

    Args:
        model: what `segclip.load` takes, or a SegCLIP. Of a SegCLIP it makes a private copy in evaluation mode, a
            snapshot: make a new Segmenter after the weights changed. The model itself stays as it is.
        protocol: "open", for people: any number of labels, edges that follow the photo; "paper", the evaluation of
            arXiv 2211.14813 to the letter; "groupvit", the same rules on larger photos and overlapping windows.
        settings: an OpenSettings or PaperSettings in place of the protocol's own.
        device: as for `segclip.load`; but "auto" leaves the copy of a SegCLIP on the model's own device.
        dtype: of the image tower; see `segclip.segment.encoder.Encoder`.
        compile: the image tower; see there.

    Raises:
        ValueError: an unknown protocol or dtype, settings of another protocol, a model that cannot be loaded, or a
            device that is not there.
    """

    def __init__(
        self,
        model: SegCLIP | str | os.PathLike,
        protocol: Protocol = "open",
        settings: Settings | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: DType = "float32",
        compile: bool = False,
    ) -> None:
        self._set_protocol(protocol, settings)
        self.model = _own_model(model, device).eval()
        self.encoder = Encoder(self.model, dtype, compile=compile, share=True)
        self._embed = LabelEmbedder(self.model)

    def with_protocol(self, protocol: Protocol, settings: Settings | None = None) -> "Segmenter":
        """A Segmenter under another protocol, which shares this one's weights and the labels it remembers.

        Raises:
            ValueError: an unknown protocol, or settings of another one.
        """
        other = copy.copy(self)
        other._set_protocol(protocol, settings)
        return other

    def _set_protocol(self, protocol: Protocol, settings: Settings | None) -> None:
        preset = settings_of(protocol)
        if settings is not None and type(settings) is not type(preset):
            raise ValueError(f"{type(settings).__name__} for protocol {protocol!r}; give {type(preset).__name__}")
        self.protocol: Protocol = protocol
        self.settings: Settings = settings or preset
        self._text = lru_cache(LABEL_SETS)(self._embed_set)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_text"}  # a cache cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._text = lru_cache(LABEL_SETS)(self._embed_set)

    def segment(self, photo: PhotoSource, labels: Sequence[str], *, background: Background = "auto") -> Segmentation:
        """Segment one photo.

        Args:
            photo: a path, a PIL image, or RGB uint8 (H,W,3), 0-255; of any size and shape.
            labels: what to look for; label i of the result is the i-th of them, counted from 1.
            background: "auto": the protocol's own way ("open": contrast words that win against the labels; "paper":
                the threshold of its settings); a number in 0..1: where the best label's probability is below it;
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
        names = check_labels(labels)  # before the model works for nothing
        _check_background(background)
        return [self._label_names(encoded, names, background) for encoded in self.encode(photos)]

    @torch.inference_mode()
    def encode(self, photos: Sequence[PhotoSource]) -> list[EncodedPhoto]:
        """What costs time and knows no labels; the windows of all photos fill common batches.

        Raises:
            PhotoError: a photo that cannot be read.
        """
        return self._encode([open_photo(photo) for photo in photos], self.settings)

    def label(self, encoded: EncodedPhoto, labels: Sequence[str], *, background: Background = "auto") -> Segmentation:
        """Segment a photo that `encode` gave, by this Segmenter. Arguments and errors: see `segment`."""
        names = check_labels(labels)
        _check_background(background)
        return self._label_names(encoded, names, background)

    def segment_embeddings(
        self, photo: PhotoSource, class_embeds: Float[Tensor, "K E"], background: float | None = None
    ) -> Int[ndarray, "H W"]:
        """The paper's protocol for given class embeddings, also where this Segmenter's own is "open".

        Args:
            photo: as for `segment`.
            class_embeds: (K,E), an embedding per class; normalised here.
            background: the threshold; None: there is no background.

        Returns:
            (H,W): 0 the background, i the i-th class.
        """
        _check_background(background)
        settings = self.settings if isinstance(self.settings, PaperSettings) else PaperSettings()
        (encoded,) = self._encode([open_photo(photo)], settings)
        embeds = torch.as_tensor(class_embeds, dtype=torch.float32, device=self._device)
        return self._label(encoded, embeds, embeds[:0], background)[0]

    @torch.inference_mode()
    def _encode(self, photos: list[AnyPhoto], settings: Settings) -> list[EncodedPhoto]:
        if isinstance(settings, PaperSettings):
            views = [[paper_protocol.cut_windows(photo, self._side, settings)] for photo in photos]
        else:
            views = [open_protocol.cut_windows(photo, self._side, settings) for photo in photos]
        if not photos:
            return []
        outputs = iter(encode_windows(self.encoder, [view for scales in views for view in scales]))
        return [
            EncodedPhoto(photo, scales, [next(outputs) for _ in scales], settings)
            for photo, scales in zip(photos, views, strict=True)
        ]

    def _label_names(self, encoded: EncodedPhoto, names: tuple[str, ...], background: Background) -> Segmentation:
        found, scores = self._label(encoded, *self._text(names), background)
        return Segmentation(found, scores, names, encoded.photo, self.protocol, background)

    @torch.inference_mode()
    def _label(
        self,
        encoded: EncodedPhoto,
        embeds: Float[Tensor, "K E"],
        contrast: Float[Tensor, "_ E"],
        background: Background,
    ) -> tuple[Int[ndarray, "_ _"], Float[ndarray, "_ _"]]:
        """Labels and scores of a photo."""
        size, settings = (encoded.photo.shape[0], encoded.photo.shape[1]), encoded.settings
        if isinstance(settings, PaperSettings):
            (view,), (output,) = encoded.views, encoded.outputs
            bar = settings.threshold if background == "auto" else background
            labels, scores = paper_protocol.label_photo(view, output, embeds, self._scale, size, bar, settings.kept)
        else:
            bar = settings.threshold if background == "auto" and settings.threshold is not None else background
            labels, scores = open_protocol.label_photo(
                size, encoded.superpixels, encoded.views, encoded.outputs, embeds, contrast, self._scale, bar, settings
            )
        return labels.cpu().numpy().astype(np.int32), scores.float().cpu().numpy()

    @torch.inference_mode()
    def _embed_set(self, names: tuple[str, ...]) -> tuple[Float[Tensor, "K E"], Float[Tensor, "_ E"]]:
        """Embeddings of the labels, and of the contrast words that compete with them; none under the paper's rules."""
        embeds = self._embed(names, self.settings.templates)
        if isinstance(self.settings, PaperSettings):
            return embeds, embeds[:0]
        words = self._embed(CONTRAST_WORDS, self.settings.templates)
        return embeds, open_protocol.competitors(embeds, names, words, CONTRAST_WORDS, self.settings)

    @property
    def _side(self) -> int:
        return self.model.config.image.side

    @property
    def _scale(self) -> float:
        return float(self.model.logit_scale.detach().exp().clamp(max=MAX_SCALE))

    @property
    def _device(self) -> torch.device:
        return self.model.logit_scale.device


def _own_model(model: SegCLIP | str | os.PathLike, device: str | torch.device) -> SegCLIP:
    """The model of a name or file, or a copy of the one given, which its owner may go on to change."""
    if not isinstance(model, SegCLIP):
        return checkpoints.load(model, device)
    target = None if device == "auto" else pick_device(device)
    return copy.deepcopy(model).to(target)


def _check_background(background: Background) -> None:
    number = isinstance(background, int | float) and not isinstance(background, bool)
    if not (background is None or background == "auto" or (number and 0 <= background <= 1)):
        raise ValueError(f'background {background!r}; expected "auto", None or a threshold in 0..1')
