"""CLIP's towers (arXiv 2103.00020): a ViT without its last blocks, and a causal text transformer.

Axes: B batch, H W pixels, P patches, V visible patches, L tokens, D width, E embedding.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ImageConfig, ModelConfig
from segclip.model.layers import ACTIVATIONS, Block, limit_precision
from segclip.model.towers.inputs import HEAD_WIDTH, empty_embedding, resize_positions
from segclip.utils.tables import choose

# Statistics of pixels of 0-1, RGB (openai/CLIP, clip/clip.py `_transform`).
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipImageTower(nn.Module):
    """CLIP's ViT, a norm before its blocks and none after them.

    No block sees the class token, as in the paper; or, where the configuration says so, all do, and it comes out first.
    """

    mean, deviation = MEAN, DEVIATION

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        width, self.keeps_class_token = config.width, config.class_token
        self.idle = () if config.class_token else ("class_token",)
        self.heads = config.heads or width // HEAD_WIDTH
        activation = choose(ACTIVATIONS, config.activation or "quick_gelu", "image.activation")
        self.region_block = partial(Block, width, self.heads, mlp_ratio=config.mlp_ratio, activation=activation)
        self.patch_embed = nn.Conv2d(3, width, config.patch, stride=config.patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(1 + config.position_grid**2, width))
        self.norm_pre = nn.LayerNorm(width)
        blocks = nn.ModuleList(self.region_block() for _ in range(config.trunk_layers))
        # 8 bits are for the trunk: elsewhere small differences decide which center takes a patch, or tokens are so few
        # that unpacking weights would take longer than multiplying by them.
        self.trunk = limit_precision(blocks, "int8")

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
        if self.keeps_class_token:
            x = torch.cat([(self.class_token + positions[0]).expand(x.shape[0], 1, -1), x], dim=1)
        x = self.norm_pre(x)
        for block in self.trunk:
            x = block(x)
        return x


class ClipTextTower(nn.Module):
    """CLIP's text transformer: causal, read at the end token (the largest id) and projected."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text
        activation = choose(ACTIVATIONS, text.activation or "quick_gelu", "text.activation")
        block = partial(Block, text.width, text.heads, mlp_ratio=text.mlp_ratio, activation=activation)
        self.token_embedding = empty_embedding(text)
        self.positions = nn.Parameter(torch.empty(text.context, text.width))
        self.blocks = nn.ModuleList(block() for _ in range(text.layers))
        self.norm_final = nn.LayerNorm(text.width)
        self.projection = nn.Parameter(torch.empty(text.width, config.embed))

    def initialize(self) -> None:
        nn.init.normal_(self.positions, std=len(self.positions) ** -0.5)
        nn.init.normal_(self.projection, std=len(self.projection) ** -0.5)

    def forward(self, token_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        x = self.token_embedding(token_ids) + self.positions[: token_ids.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)
        end = token_ids.argmax(dim=-1)
        x = x[torch.arange(len(x), device=x.device), end]
        return self.norm_final(x) @ self.projection
