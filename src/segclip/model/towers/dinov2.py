"""DINOv2's image tower (arXiv 2304.07193).

Axes: B batch, H W pixels, P patches, V visible patches, D width.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ImageConfig
from segclip.model.layers import ACTIVATIONS, Block, limit_precision
from segclip.model.towers.clip import DEVIATION, MEAN
from segclip.model.towers.inputs import HEAD_WIDTH, resize_positions
from segclip.utils.tables import choose


class Dinov2ImageTower(nn.Module):
    """DINOv2's ViT: GELU, LayerScale, a norm after its blocks; its class token is kept while they run.

    Its pixels are normalised by CLIP's statistics: runs/mini_towers.py folds the change from DINOv2's own ones into the
    patch embedding.
    """

    mean, deviation = MEAN, DEVIATION
    idle = ()

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        width, norm = config.width, partial(nn.LayerNorm, eps=1e-6)
        self.heads = config.heads or width // HEAD_WIDTH
        self.region_block = partial(Block, width, self.heads)  # not DINOv2's: the blocks over the regions are new
        activation = choose(ACTIVATIONS, config.activation or "gelu", "image.activation")
        block = partial(Block, width, self.heads, mlp_ratio=config.mlp_ratio, activation=activation, norm=norm)
        self.patch_embed = nn.Conv2d(3, width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(1 + config.position_grid**2, width))
        blocks = nn.ModuleList(block(layer_scale=True) for _ in range(config.trunk_layers))
        self.trunk = limit_precision(blocks, "int8")  # for CLIP's reasons
        self.norm_trunk = norm(width)

    def initialize_inputs(self) -> None:
        nn.init.normal_(self.class_token, std=len(self.class_token) ** -0.5)
        nn.init.normal_(self.positions, std=len(self.positions) ** -0.5)

    def forward(
        self, pixels: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B V"] | None = None, *, offset: float = 0.0
    ) -> Float[Tensor, "B _ D"]:
        """`offset`: see `resize_positions`."""
        x = self.patch_embed(pixels)
        positions = resize_positions(self.positions, x.shape[-2], x.shape[-1], offset)
        x = x.flatten(2).mT + positions[1:]
        if keep is not None:
            x = x.take_along_dim(keep[..., None], dim=1)
        first = (self.class_token + positions[0]).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1)
        for block in self.trunk:
            x = block(x)
        return self.norm_trunk(x)[:, 1:]
