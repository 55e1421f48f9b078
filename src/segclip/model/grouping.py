"""Learnable centers gather patches into regions: the heart of SegCLIP.

Axes: B batch, C centers, P patches, D width. A region is what one center gathered.
Source: arXiv 2211.14813, section 3.2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segclip.model.layers import MLP, Attention, light, limit_precision, quick_gelu

TAU = 0.9  # temperature of the Gumbel-softmax in training


@dataclass(frozen=True)
class Grouping:
    """What the centers did with the patches.

    Attributes:
        regions: (B,C,D).
        hard: (B,C,P), each patch given to one center; in training with a straight-through gradient.
        soft: (B,C,P), softmax over the centers, without noise.
    """

    regions: Float[Tensor, "B C D"]
    hard: Float[Tensor, "B C P"]
    soft: Float[Tensor, "B C P"]


class GroupedLinear(nn.Module):
    """A 1x1 convolution in `groups` groups, without bias, over tokens; one group per attention head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(width, width // groups))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = x.unflatten(-1, (self.groups, -1))
        weight = self.weight.unflatten(0, (self.groups, -1))
        return torch.einsum("bngi,goi->bngo", x, weight).flatten(2)


class CenterBlock(nn.Module):
    """Centers look at themselves and at the patches (cross-attention), then pass an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_centers = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, quick_gelu)

    @light
    def forward(self, centers: Float[Tensor, "B C D"], patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B C D"]:
        context = self.norm_context(torch.cat([centers, patches], dim=1))
        centers = centers + self.attention(self.norm_centers(centers), context)
        return centers + self.mlp(self.norm2(centers))


class CenterGrouping(nn.Module):
    """Learnable centers -> assignment of patches to centers -> regions."""

    def __init__(self, width: int, heads: int, centers: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.empty(centers, width))
        self.blocks = nn.ModuleList(CenterBlock(width, heads) for _ in range(2))
        self.norm_centers = nn.LayerNorm(width)
        self.norm_patches = nn.LayerNorm(width)
        self.key = GroupedLinear(width, heads)
        self.norm_key = nn.LayerNorm(width)
        self.value = GroupedLinear(width, heads)
        self.norm_out = nn.LayerNorm(width)
        # Elsewhere, rounding errors meet a sum over the blocks that is kept in float32; after this nothing is added up.
        self.mlp_out = limit_precision(MLP(width, F.gelu), "float32")

    def forward(self, patches: Float[Tensor, "B P D"], gumbel: Float[Tensor, "B C P"] | None = None) -> Grouping:
        """Gather patches.

        Args:
            patches: (B,P,D).
            gumbel: Gumbel noise (B,C,P) of a training step; None assigns each patch to its best center.
        """
        centers = self.centers.expand(patches.shape[0], -1, -1)
        for block in self.blocks:
            centers = block(centers, patches)
        centers = self.norm_centers(centers)

        normed = self.norm_patches(patches)
        logits = centers @ self.norm_key(self.key(normed)).mT
        soft = logits.softmax(dim=1)
        hard = _one_hot(soft) if gumbel is None else _straight_through((logits + gumbel) / TAU)

        count = hard.sum(dim=-1, keepdim=True).clamp(min=1)
        means = hard @ self.value(normed) / count
        regions = quick_gelu(self.mlp_out(self.norm_out(centers + means)))
        return Grouping(regions, hard, soft)


def sample_gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise: -log of an exponential variable."""
    return -torch.empty(shape, device=like.device, dtype=like.dtype).exponential_(generator=generator).log()


def _one_hot(soft: Float[Tensor, "B C P"]) -> Float[Tensor, "B C P"]:
    return torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)


def _straight_through(logits: Float[Tensor, "B C P"]) -> Float[Tensor, "B C P"]:
    """One-hot forward, the gradient of the softmax backward (arXiv 1611.01144)."""
    soft = logits.softmax(dim=1)
    return _one_hot(soft.detach()) - soft.detach() + soft
