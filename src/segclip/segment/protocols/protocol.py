"""The interface of protocols; `paper.py` is the shortest example.

Axes: H W pixels, K labels, J some of them, W their words, N reference words, E embedding.
"""

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
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
        labels: (W,E), one per word.
        reference: (N,E), of words in general; None where the protocol compares labels with nothing.
        owners: the number of the label, from 0, that each word means; None: each word is a label.
        background: whether the last label says what the background is.
    """

    labels: Float[Tensor, "W E"]
    reference: Float[Tensor, "N E"] | None = None
    owners: tuple[int, ...] | None = None
    background: bool = False

    @property
    def count(self) -> int:
        """Labels K."""
        return len(self.labels) if self.owners is None else self.owners[-1] + 1

    def owner(self) -> Int[Tensor, "W"]:
        """`owners` as a tensor."""
        return torch.tensor(self.owners or range(len(self.labels)), device=self.labels.device)

    def best(self, scores: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch K"]:
        """The score of each label: that of its best word."""
        if self.owners is None:
            return scores
        best = scores.new_empty(*scores.shape[:-1], self.count)
        index = self.owner().expand(scores.shape)
        return best.scatter_reduce(-1, index, scores, "amax", include_self=False)

    def only(self, kept: Int[Tensor, "J"]) -> "EmbeddedLabels":
        """The labels with these numbers, in ascending order."""
        if self.owners is None:
            return EmbeddedLabels(self.labels[kept], self.reference)
        numbers = {label: number for number, label in enumerate(kept.tolist())}
        words = [word for word, owner in enumerate(self.owners) if owner in numbers]
        return EmbeddedLabels(self.labels[words], self.reference, tuple(numbers[self.owners[word]] for word in words))


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

    It may have, too, `position_offset` (see `segclip.model.towers.inputs.resize_positions`), and `thresholds_words`:
    whether its threshold counts where words say what the background is.
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

    def embed_labels(self, words: tuple[str, ...], embed: EmbedTexts, /) -> EmbeddedLabels:
        """Embeddings of the labels' words, and of what they are compared with."""
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
