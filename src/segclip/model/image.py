"""Image tower: pixels -> patches -> regions -> embeddings.

Axes: B batch, H W pixels, P patches, V visible patches, C centers, D width, E embedding.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.model.grouping import CenterGrouping, Grouping
from segclip.model.layers import Block, limit_precision


class ImageTower(nn.Module):
    """A ViT trunk (CLIP's or DINOv2's), the centers, and blocks over the regions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        image = self.config = config.image
        width, heads, dinov2 = image.width, image.heads, image.kind == "dinov2"
        self.patch_embed = nn.Conv2d(3, width, image.patch, stride=image.patch, bias=dinov2)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(1 + image.position_grid**2, width))
        block_options = {"activation": F.gelu, "eps": 1e-6, "layer_scale": True} if dinov2 else {}
        self.norm_pre = nn.Identity() if dinov2 else nn.LayerNorm(width)
        trunk = nn.ModuleList(Block(width, heads, **block_options) for _ in range(image.trunk_layers))
        # 8 bits are for the trunk: elsewhere small differences decide which center takes a patch, or tokens are so few
        # that unpacking weights would take longer than multiplying by them.
        self.trunk = limit_precision(trunk, "int8")
        self.norm_trunk = nn.LayerNorm(width, 1e-6) if dinov2 else nn.Identity()
        self.grouping = CenterGrouping(width, heads, config.centers)
        self.region_blocks = nn.ModuleList(Block(width, heads) for _ in range(image.region_layers))
        self.norm_post = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.empty(width, config.embed))

    def encode_patches(
        self, pixels: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B _ D"]:
        """Patch features (B,P,D), or (B,V,D) of the patches `keep` alone, in the order given there."""
        x = self.patch_embed(pixels)
        positions = self._positions_for(x.shape[-2], x.shape[-1])
        x = x.flatten(2).mT + positions[1:]
        if keep is not None:
            x = x.take_along_dim(keep[..., None], dim=1)
        if self.config.kind == "dinov2":
            first = (self.class_token + positions[0]).expand(x.shape[0], 1, -1)
            x = torch.cat([first, x], dim=1)
        x = self.norm_pre(x)
        for block in self.trunk:
            x = block(x)
        x = self.norm_trunk(x)
        return x[:, 1:] if self.config.kind == "dinov2" else x

    def embed_regions(self, regions: Float[Tensor, "B C D"]) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B C E"]]:
        """Regions -> the image's embedding (their element-wise maximum) and one embedding each."""
        regions = self.relate(regions)
        return self._project(regions.amax(dim=1)), self._project(regions)

    def embed_mosaic(self, grouping: Grouping, photos: int) -> Float[Tensor, "_ E"]:
        """The embedding of each photo of a mosaic: the sum of two unit vectors.

        One is the maximum over the regions with most of their patches in the photo, as `embed_regions` has it for a
        whole photo. The other is the mean of its patches' regions, each embedded by itself, as it is when it is named.

        Args:
            grouping: of mosaics: the patches of `photos` photos one after the other, equally many of each.
            photos: in a mosaic. One without a region of its own gets the maximum over all regions.
        """
        patches = grouping.hard.detach().unflatten(-1, (photos, -1)).sum(dim=-1)
        own = F.one_hot(patches.argmax(dim=-1), photos).bool() & (patches > 0)
        own = own | ~own.any(dim=1, keepdim=True)
        regions = self.relate(grouping.regions)
        largest = regions[:, :, None].masked_fill(~own[..., None], -torch.inf).amax(dim=1)
        each = F.normalize(self._project(regions), dim=-1)
        mean = (patches / patches.sum(dim=1, keepdim=True)).mT.to(each.dtype) @ each
        return (F.normalize(self._project(largest), dim=-1) + F.normalize(mean, dim=-1)).flatten(0, 1)

    def relate(self, regions: Float[Tensor, "B C D"]) -> Float[Tensor, "B C D"]:
        """The regions after the blocks in which they see each other."""
        for block in self.region_blocks:
            regions = block(regions)
        return regions

    def _project(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return self.norm_post(x) @ self.projection

    def check_size(self, height: int, width: int) -> None:
        patch = self.config.patch
        for side in (height, width):
            if side % patch or side == 0:
                raise ValueError(f"image side {side} is not a multiple of the patch {patch}; resize or pad it")

    def _positions_for(self, rows: int, columns: int) -> Float[Tensor, "N D"]:
        """Position embeddings for a grid of patches; the class token's first."""
        grid = self.config.position_grid
        if not torch.compiler.is_exporting() and (rows, columns) == (grid, grid):  # an export knows no sizes
            return self.positions
        stored = self.positions[1:].T.reshape(1, -1, grid, grid)
        resized = F.interpolate(stored, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:1], resized.flatten(2)[0].T])
