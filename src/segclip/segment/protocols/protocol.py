"""The interface of protocols; `paper.py` is the shortest example.

Axes: H W pixels, K labels, N reference words, E embedding.
"""

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.windows import Windows

# Texts, and the templates for each -> an embedding of each text, L2-normalised.
EmbedTexts = Callable[[Sequence[str], tuple[str, ...]], Float[Tensor, "_ E"]]


@dataclass(frozen=True)
class EmbeddedLabels:
    """Labels as embeddings.

    Attributes:
        labels: (K,E), one per label.
        reference: (N,E), of words in general; None where the protocol compares labels with nothing.
    """

    labels: Float[Tensor, "K E"]
    reference: Float[Tensor, "N E"] | None = None


@dataclass(frozen=True)
class LabelMap:
    """The label of each pixel of a photo.

    Attributes:
        labels: (H,W), 0 is the background, i the i-th label.
        scores: (H,W), the score of that label, in 0..1.
        presence: (K,), how likely each label is in the photo, in 0..1; 1 where the protocol does not judge.
    """

    labels: Int[Tensor, "H W"]
    scores: Float[Tensor, "H W"]
    presence: Float[Tensor, "K"]


@typing.runtime_checkable
class Protocol(typing.Protocol):
    """A frozen dataclass with these methods; its fields are the settings that `segclip evaluate --set` can change.

    Attributes:
        needs_patches: whether it needs an embedding and features of each patch (see `ImageOutput`).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    needs_patches: ClassVar[bool]

    def cut_photo(self, photo: AnyPhoto, side: int, patch: int) -> list[Windows]:
        """The photo in windows, at each scale at which to encode it.

        Args:
            photo: RGB.
            side: of the images that the model was trained on, in pixels.
            patch: side of its patches in pixels, of which each side of a window must be a multiple.
        """
        ...

    def embed_labels(self, names: tuple[str, ...], embed: EmbedTexts) -> EmbeddedLabels:
        """Embeddings of the labels, and of what they are compared with."""
        ...

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        """The label of each pixel.

        Args:
            photo: cut by this protocol, and encoded.
            labels: from `embed_labels`.
            background: "auto": the protocol's own way; a number: the threshold for the best label's probability;
                None: every pixel gets a label.
            presence: "auto": a label that the protocol finds absent from the photo gets no pixel; None: every label is
                taken to be in the photo, and its presence is 1.
            scale: the multiplier of the cosines, `SegCLIP.scale`.
        """
        ...

    def for_benchmark(self, name: str) -> "Protocol":
        """The protocol with the settings published for a benchmark such as "voc2012"."""
        ...
