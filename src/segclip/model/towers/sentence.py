"""A sentence encoder as text tower.

Axes: B texts, L tokens, E embedding.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.model.layers import ACTIVATIONS, PostNormBlock
from segclip.model.towers.inputs import empty_embedding
from segclip.utils.tables import choose


class SentenceTextTower(nn.Module):
    """BERT-like sentence encoder, mean-pooled over its tokens (arXiv 1908.10084); padding is id 0.

    `positions` holds BERT's position plus its type-0 embedding.

    Raises:
        ValueError: it has no projection, so its width must be that of the embedding.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text
        if text.width != config.embed:
            raise ValueError(
                f"a sentence tower has no projection: embed {config.embed} must equal its width {text.width}"
            )
        activation = choose(ACTIVATIONS, text.activation or "gelu", "text.activation")
        block = partial(PostNormBlock, text.width, text.heads, mlp_ratio=text.mlp_ratio, activation=activation)
        self.token_embedding = empty_embedding(text)
        self.positions = nn.Parameter(torch.empty(text.context, text.width))
        self.norm_embedding = nn.LayerNorm(text.width, 1e-12)
        self.blocks = nn.ModuleList(block() for _ in range(text.layers))

    def initialize(self) -> None:
        nn.init.normal_(self.positions, std=len(self.positions) ** -0.5)

    def forward(self, token_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        mask = token_ids != 0
        x = self.norm_embedding(self.token_embedding(token_ids) + self.positions[: token_ids.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
