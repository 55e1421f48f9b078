"""An image tower: python my_tower.py train debug --model.image.kind mixer --out RUN"""

import sys
from itertools import chain

import torch
from torch import Tensor, nn

from segclip.cli import main
from segclip.config import ImageConfig
from segclip.model.layers import Block
from segclip.model.towers import IMAGE_TOWERS


class Mixer(nn.Module):
    """Each patch by itself through an MLP, with a position; no attention."""

    mean, deviation = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    heads, idle = 2, ()

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.width = config.width
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.rows, self.columns = (nn.Parameter(torch.empty(config.width)) for _ in range(2))
        layers = ((nn.Linear(config.width, config.width), nn.Tanh()) for _ in range(config.trunk_layers))
        self.trunk = nn.Sequential(*chain.from_iterable(layers))

    def initialize_inputs(self) -> None:
        for direction in (self.rows, self.columns):
            nn.init.normal_(direction, std=0.1)

    def region_block(self) -> nn.Module:
        return Block(self.width, self.heads, mlp_ratio=2.0)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.patch_embed(pixels).movedim(1, -1)
        down, across = (torch.linspace(-1, 1, count, device=x.device).to(x) for count in x.shape[1:3])
        x = x + down[:, None, None] * self.rows + across[:, None] * self.columns
        x = x.flatten(1, 2)
        if keep is not None:
            x = x.take_along_dim(keep[..., None], dim=1)
        return self.trunk(x)


IMAGE_TOWERS["mixer"] = Mixer

if __name__ == "__main__":
    sys.exit(main())
