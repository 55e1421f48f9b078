"""What a model takes and gives besides photos and texts: named tensors, which know how to join, part and move.

Axes: B batch, C centers, P patches, N, V patches that are grouped, D width, E embedding; M rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ImageOutput:
    """What an image becomes.

    Attributes:
        embedding: (B,E), not normalised.
        regions: (B,C,E), an embedding per region, not normalised.
        hard: (B,C,P), each patch given to one center.
        soft: (B,C,P), softmax over the centers; draws the masks. Where each patch is a region, both are the identity.
        patches: (B,P,E), an embedding per patch, as if it were a region of its own; None where nobody asked for it, or
            where the grouping has no such thing.
        features: (B,P,D), what the trunk gave for each patch, around the mean of the centers, or of the photo's patches
            where no centers have learned; None where nobody asked.
    """

    embedding: Float[Tensor, "B E"]
    regions: Float[Tensor, "B C E"]
    hard: Float[Tensor, "B C P"]
    soft: Float[Tensor, "B C P"]
    patches: Float[Tensor, "B P E"] | None = None
    features: Float[Tensor, "B P D"] | None = None

    @staticmethod
    def cat(outputs: Sequence["ImageOutput"]) -> "ImageOutput":
        """The images of all, one after the other."""
        return _cat(outputs)

    def split(self, sizes: int | Sequence[int]) -> list["ImageOutput"]:
        """Images in parts, as `torch.split` has it."""
        return _split(self, sizes)

    def to(self, device: torch.device | str) -> "ImageOutput":
        """The same on a device."""
        return _move(self, device)


def is_identity(soft: Float[Tensor, "B C P"]) -> bool:
    """Whether each patch is a region of its own; looks at P shares, as those of a patch sum to 1."""
    return soft.shape[1] == soft.shape[2] and bool((soft.diagonal(dim1=1, dim2=2) == 1).all())


@dataclass(frozen=True)
class Noise:
    """Every random draw of a training step.

    Attributes:
        gumbel: (B,C,N), Gumbel noise of the plain pass; N is P, or less where only some patches are seen.
        mask: (M,P); the patches with the smallest values stay visible, in ascending order. M is B, or less where only a
            part is masked.
        gumbel_visible: (M,C,V), Gumbel noise of the masked pass.
    """

    gumbel: Float[Tensor, "B C N"]
    mask: Float[Tensor, "M P"]
    gumbel_visible: Float[Tensor, "M C V"]

    @staticmethod
    def cat(draws: Sequence["Noise"]) -> "Noise":
        """The samples of all, one after the other."""
        return _cat(draws)

    def split(self, sizes: int | Sequence[int]) -> list["Noise"]:
        """Samples in parts, as `torch.split` has it; of noise with as many rows everywhere."""
        return _split(self, sizes)

    def to(self, device: torch.device | str) -> "Noise":
        """The same on a device."""
        return _move(self, device)


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        terms: by name, each a scalar without its weight; only those that were asked for.
        total: their weighted sum.
    """

    terms: dict[str, Float[Tensor, ""]]
    total: Float[Tensor, ""]

    @property
    def contrastive(self) -> Float[Tensor, ""]:
        """The paper's term of that name; 0 where it was left out."""
        return self._term("contrastive")

    @property
    def superpixel(self) -> Float[Tensor, ""]:
        """The paper's term of that name; 0 where it was left out, or no superpixels were given."""
        return self._term("superpixel")

    @property
    def reconstruction(self) -> Float[Tensor, ""]:
        """The paper's term of that name; 0 where it was left out."""
        return self._term("reconstruction")

    def _term(self, name: str) -> Tensor:
        return self.terms.get(name, torch.zeros_like(self.total))


def _tensors(item: Any) -> dict[str, Tensor]:
    named = {field.name: getattr(item, field.name) for field in fields(item)}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _cat(items: Sequence[T]) -> T:
    if len(items) == 1:
        return items[0]  # a copy would make of one identity for all windows one for each
    each = [_tensors(item) for item in items]
    return type(items[0])(**{name: torch.cat([one[name] for one in each]) for name in each[0]})


def _split(item: T, sizes: int | Sequence[int]) -> list[T]:
    sizes = sizes if isinstance(sizes, int) else list(sizes)
    parts = {name: one.split(sizes) for name, one in _tensors(item).items()}
    return [type(item)(**dict(zip(parts, own, strict=True))) for own in zip(*parts.values(), strict=True)]


def _move(item: T, device: torch.device | str) -> T:
    return type(item)(**{name: one.to(device) for name, one in _tensors(item).items()})
