"""Segmenter: a photo and labels -> a label per pixel.

Axes: H W pixels, K labels, E embedding.
"""

import copy
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from segclip.checkpoints import loading as checkpoints
from segclip.checkpoints.variants import vary
from segclip.data.photos import PhotoSource, open_photo
from segclip.model.segclip import SegCLIP
from segclip.segment.background import Background, check_background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.encoder import DType, Encoder
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.presence import Presence, check_presence
from segclip.segment.protocols import PROTOCOLS, find_protocol, name_of
from segclip.segment.protocols.paper import PaperProtocol, paper_scores
from segclip.segment.protocols.protocol import EmbeddedLabels, LabelMap, Protocol
from segclip.segment.result import Found, Segmentation
from segclip.segment.soft_maps import draw_soft
from segclip.segment.windows import encode_windows
from segclip.text.labels import Label, Labels, check_labels, warn_of_same
from segclip.text.tokenizers import tokenizer_for
from segclip.utils.devices import pick_device

__all__ = [
    "PROTOCOLS",
    "AnyPhoto",
    "Background",
    "EncodedPhoto",
    "Found",
    "Presence",
    "Protocol",
    "Segmentation",
    "Segmenter",
    "paper_scores",
]

LABEL_SETS = 8  # lists of labels whose embeddings are remembered, least recently used dropped first


class Segmenter:
    """Segments photos with a model, and remembers the embeddings of labels.

    It can be pickled, for worker processes.

    Args:
        model: what `segclip.load` takes, or a SegCLIP. A SegCLIP is copied in evaluation mode, as a snapshot: after its
            weights change, make a new Segmenter. The model itself is not changed.
        protocol: "open", for everyday use: any number of labels, edges that follow the photo; "paper", exactly the
            evaluation of arXiv 2211.14813; "groupvit", the same rules on larger photos with overlapping windows. Or a
            protocol with other settings, such as `OpenProtocol(scale=1.0)`, or of your own class.
        head: how the patches of a CLIP without learned centers say what they show: a name in
            `segclip.model.dense.HEADS`; None: the model's own, which is "naclip" of weights that name none.
        device: as for `segclip.load`, but "auto" keeps the copy of a SegCLIP on the model's device.
        dtype: of the image tower; see `segclip.segment.encoder.Encoder`.
        compile: whether to compile the image tower; see `Encoder`.

    Attributes:
        protocol: the object.
        protocol_name: its name in `PROTOCOLS`, or that of its class; results record it.

    Raises:
        ValueError: an unknown protocol, head or dtype, a head for a model that has none, a model that cannot be loaded,
            or a device that is not available.
    """

    def __init__(
        self,
        model: SegCLIP | str | os.PathLike,
        protocol: Protocol | str = "open",
        *,
        head: str | None = None,
        device: str | torch.device = "auto",
        dtype: DType = "float32",
        compile: bool = False,
    ) -> None:
        self._set_protocol(protocol)
        self.model = vary(_load_or_copy(model, device), head=head).eval()
        self.encoder = Encoder(self.model, dtype, compile=compile, share=True)
        self._embed = LabelEmbedder(self.model)

    def __repr__(self) -> str:
        """In one line: the model, the protocol, precision and device."""
        dtype = self.encoder.dtype
        return f"<Segmenter of {self.model!r}: protocol {self.protocol_name}, {dtype}, {self.encoder.device}>"

    def with_protocol(self, protocol: Protocol | str) -> "Segmenter":
        """A Segmenter with another protocol, which shares this one's weights and remembered embeddings.

        Raises:
            ValueError: an unknown protocol.
        """
        other = copy.copy(self)
        other._set_protocol(protocol)
        return other

    def _set_protocol(self, protocol: Protocol | str) -> None:
        self.protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
        self.protocol_name = protocol if isinstance(protocol, str) else name_of(protocol)
        self._embedded = _remember(self._embed_labels)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_embedded"}  # a cache cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._embedded = _remember(self._embed_labels)

    def segment(
        self,
        photo: PhotoSource,
        labels: Labels | Sequence[Label],
        *,
        background: Background = "auto",
        presence: Presence = "auto",
    ) -> Segmentation:
        """Segment one photo.

        Args:
            photo: a path, the bytes of an image file, a PIL image, or a uint8 array, 0-255: grey (H,W), RGB (H,W,3) or
                RGBA (H,W,4); of any size and shape.
            labels: what to look for; label i of the result is the i-th of them, counted from 1. Each is a text, or
                several that mean one thing, `"cat|kitten"` or `("cat", "kitten")`: its name is the first, and its best
                word says where it is. Those of `"background|sky|wall"` are label 0.
            background: "auto": the protocol's own way ("open": beyond the extent of the best label; "paper": its
                threshold); a number in 0..1: where the best label's score is below it; None: every pixel gets a label.
            presence: "auto": a label that the protocol finds absent from the photo gets no pixel ("paper" and
                "groupvit" never do); None: every label is taken to be in the photo.

        Raises:
            PhotoError: a photo that cannot be read.
            ValueError: invalid labels, background or presence.
        """
        return self.segment_batch([photo], labels, background=background, presence=presence)[0]

    def segment_batch(
        self,
        photos: Sequence[PhotoSource],
        labels: Labels | Sequence[Label],
        *,
        background: Background = "auto",
        presence: Presence = "auto",
    ) -> list[Segmentation]:
        """Segment photos together, with their windows in shared batches. Arguments and errors: see `segment`."""
        # Checked before any work of the model.
        checked, background, presence = check_labels(labels), check_background(background), check_presence(presence)
        return [self._label_checked(encoded, checked, background, presence) for encoded in self.encode(photos)]

    def encode(self, photos: Sequence[PhotoSource]) -> list[EncodedPhoto]:
        """Encode photos, which takes most of the time and needs no labels; their windows share batches.

        Raises:
            PhotoError: a photo that cannot be read.
        """
        return self._encode([open_photo(photo) for photo in photos], self.protocol)

    def label(
        self,
        encoded: EncodedPhoto,
        labels: Labels | Sequence[Label],
        *,
        background: Background = "auto",
        presence: Presence = "auto",
    ) -> Segmentation:
        """Segment a photo that this Segmenter encoded. Arguments and errors: see `segment`."""
        checked = check_labels(labels)
        return self._label_checked(encoded, checked, check_background(background), check_presence(presence))

    def embed_labels(self, labels: Sequence[str]) -> Float[Tensor, "K E"]:
        """(K,E): the embedding of each label, averaged over the protocol's templates, of length 1.

        `segment_embeddings` takes them, or means of them. Each label is one text here.

        Raises:
            ValueError: invalid labels, or one of several words, each of which has its own embedding.
        """
        checked = check_labels(labels)
        if len(checked.all_words) > len(checked.names):
            raise ValueError(f"labels of several words, {checked.texts()}; give each word as a label of its own")
        return self._embedded(checked).labels.clone()

    def segment_embeddings(
        self, photo: PhotoSource, class_embeds: Float[Tensor, "K E"], background: float | None = None
    ) -> Int[ndarray, "H W"]:
        """Segment with given class embeddings, under this Segmenter's protocol, or the paper's in place of "open".

        Args:
            photo: as for `segment`.
            class_embeds: (K,E), one per class; normalised here.
            background: the threshold; None: no background.

        Returns:
            (H,W): 0 is the background, i the i-th class.
        """
        threshold = check_background(background)
        protocol = PaperProtocol() if self.protocol.needs_patches else self.protocol
        (encoded,) = self._encode([open_photo(photo)], protocol)
        embeds = torch.as_tensor(class_embeds, dtype=torch.float32, device=self.encoder.device)
        found = self._label(encoded, EmbeddedLabels(embeds), threshold, None, protocol)
        return found.labels.int().cpu().numpy()

    @torch.inference_mode()
    def _encode(self, photos: list[AnyPhoto], protocol: Protocol) -> list[EncodedPhoto]:
        if not photos:
            return []
        image = self.model.config.image
        cut = [protocol.cut_photo(photo, image.side, image.patch) for photo in photos]
        every = [windows for scales in cut for windows in scales]
        offset = getattr(protocol, "position_offset", 0.0)
        outputs = iter(encode_windows(self.encoder, every, each=protocol.needs_patches, offset=offset))
        return [
            EncodedPhoto(photo, scales, [next(outputs) for _ in scales])
            for photo, scales in zip(photos, cut, strict=True)
        ]

    def _label_checked(
        self, encoded: EncodedPhoto, labels: Labels, background: Background, presence: Presence
    ) -> Segmentation:
        found = self._label(encoded, self._embedded(labels), background, presence, self.protocol)
        count = len(labels.names)  # what is beyond them is the background by its words
        kept = replace(encoded)  # without what is quickly computed anew, and large
        return Segmentation(
            labels=found.labels.masked_fill(found.labels > count, 0).int().cpu().numpy(),
            scores=found.scores.float().cpu().numpy(),
            names=labels.names,
            photo=encoded.photo,
            protocol=self.protocol_name,
            background=background,
            presence=found.presence[:count].float().cpu().numpy(),
            draw=partial(self._draw, kept, labels, background, found),
        )

    @torch.inference_mode()
    def _draw(
        self, encoded: EncodedPhoto, labels: Labels, background: Background, found: LabelMap, index: int
    ) -> Float[ndarray, "H W"]:
        embedded = self._embedded(labels)
        soft = draw_soft(self.protocol, encoded, embedded, index, background, found, self.model.scale)
        return soft.float().cpu().numpy()

    @torch.inference_mode()
    def _label(
        self,
        encoded: EncodedPhoto,
        labels: EmbeddedLabels,
        background: Background,
        presence: Presence,
        protocol: Protocol,
    ) -> LabelMap:
        return protocol.label_photo(encoded, labels, background, presence, self.model.scale)

    @torch.inference_mode()
    def _embed_labels(self, labels: Labels) -> EmbeddedLabels:
        words = labels.all_words
        warn_of_same(words, tokenizer_for(self.model.config.text).own_ids(words))
        embedded = self.protocol.embed_labels(words, self._embed)
        if len(words) == len(labels.names):
            return embedded
        return replace(embedded, owners=labels.owners, background=bool(labels.background))


def _load_or_copy(model: SegCLIP | str | os.PathLike, device: str | torch.device) -> SegCLIP:
    """The model with this name or file, or a copy of the given model, so that its owner may change it."""
    if not isinstance(model, SegCLIP):
        return checkpoints.load(model, device)
    target = None if device == "auto" else pick_device(device)
    return copy.deepcopy(model).to(target)


def _remember(
    embed: Callable[[Labels], EmbeddedLabels],
) -> Callable[[Labels], EmbeddedLabels]:
    """`embed` with a cache; while one thread embeds, the others wait, so that no labels are embedded twice."""
    known, lock = lru_cache(LABEL_SETS)(embed), threading.Lock()

    def ask(labels: Labels) -> EmbeddedLabels:
        with lock:
            return known(labels)

    return ask
