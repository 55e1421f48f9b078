"""The masked branch: regions of a few visible patches must explain the pixels of all.

Axes: B batch, P patches, V visible patches, C centers, D width.
Source: arXiv 2211.14813, section 3.3; decoder as in arXiv 2111.06377.
"""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.model.grouping import Grouping, count_regions
from segclip.model.layers import Block, quick_gelu


def visible_count(patches: int, mask_ratio: float = ModelConfig.mask_ratio) -> int:
    """Patches that stay visible: the class token counts as kept, then it is dropped."""
    return int((patches + 1) * (1 - mask_ratio)) - 1


class Reconstruction(nn.Module):
    """Regions -> visible patches -> pixels of every patch."""

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        width, narrow, regions = config.image.width, config.image.width // 2, count_regions(config)
        self.unpool = nn.Linear(regions, regions)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.embed = nn.Linear(width, narrow)
        self.mask_token = nn.Parameter(torch.empty(narrow))
        self.decoder = nn.ModuleList(
            Block(narrow, config.decoder_heads, activation=F.gelu, norm=partial(nn.LayerNorm, eps=1e-6))
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(narrow, 1e-6)
        self.predict = nn.Linear(narrow, config.image.patch**2 * 3)

    def initialize(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, grouping: Grouping, order: Int[Tensor, "B P"], grid: tuple[int, int]
    ) -> Float[Tensor, "B P pixels"]:
        """Pixels of each patch.

        Args:
            grouping: of the visible patches, in the order of `order`.
            order: the patches, visible ones first.
            grid: rows and columns of patches.

        Returns:
            (B, P, patch*patch*3), laid out row, column, channel inside a patch.
        """
        x = quick_gelu(self.unpool(grouping.hard.mT) @ grouping.regions)
        for block in self.blocks:
            x = block(x)
        x = self.embed(torch.cat([x.mean(dim=1, keepdim=True), x], dim=1))
        hidden = self.mask_token.expand(len(x), order.shape[1] - x.shape[1] + 1, -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1)
        patches = patches.take_along_dim(order.argsort(dim=1)[..., None], dim=1)
        positions = sin_cos_positions(*grid, x.shape[-1]).to(x)
        x = torch.cat([x[:, :1], patches + positions], dim=1)
        for block in self.decoder:
            x = block(x)
        return self.predict(self.norm(x))[:, 1:]


def sin_cos_positions(rows: int, columns: int, width: int) -> Float[Tensor, "P D"]:
    """Fixed 2-D positions: half the channels for the column, half for the row, each sin then cos."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half // 2, dtype=torch.float64) / (half / 2))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = torch.stack([column.flatten(), row.flatten()])[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(1, 0, 2).flatten(1).float()


def patchify(pixels: Float[Tensor, "B 3 H W"], patch: int) -> Float[Tensor, "B P pixels"]:
    """Cut an image into patches, each laid out row, column, channel."""
    x = pixels.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
