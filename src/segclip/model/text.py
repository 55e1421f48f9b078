"""Text towers: token ids -> one embedding per text, not normalised.

Axes: B texts, L tokens, D width, E embedding.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ModelConfig, TextConfig
from segclip.model.layers import Block, PostNormBlock


class ClipText(nn.Module):
    """CLIP's text tower: causal, read at the end token (the largest id) and projected."""

    def __init__(self, config: TextConfig, embed: int) -> None:
        super().__init__()
        self.token_embedding = _embedding(config)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm_final = nn.LayerNorm(config.width)
        self.projection = nn.Parameter(torch.empty(config.width, embed))

    def forward(self, token_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        x = self.token_embedding(token_ids) + self.positions[: token_ids.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)
        end = token_ids.argmax(dim=-1)
        x = x[torch.arange(len(x), device=x.device), end]
        return self.norm_final(x) @ self.projection


class SentenceText(nn.Module):
    """BERT-like sentence encoder, mean-pooled over its tokens (arXiv 1908.10084); padding is id 0.

    `positions` holds BERT's position plus its type-0 embedding.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = _embedding(config)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.norm_embedding = nn.LayerNorm(config.width, 1e-12)
        self.blocks = nn.ModuleList(PostNormBlock(config.width, config.heads) for _ in range(config.layers))

    def forward(self, token_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        mask = token_ids != 0
        x = self.norm_embedding(self.token_embedding(token_ids) + self.positions[: token_ids.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _embedding(config: TextConfig) -> nn.Embedding:
    """Not drawn here: SegCLIP does it, and on the meta device drawing imports half of torch, over a second."""
    return nn.Embedding.from_pretrained(torch.empty(config.vocabulary, config.width), freeze=False)


def text_tower(config: ModelConfig) -> ClipText | SentenceText:
    if config.text.kind == "clip":
        return ClipText(config.text, config.embed)
    return SentenceText(config.text)
