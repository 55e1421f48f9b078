"""A grouping: python my_grouping.py train debug --model.grouping slots --init-centers random --out RUN"""

import sys

import torch
from torch import Tensor, nn

from segclip.cli import main
from segclip.config import ModelConfig
from segclip.model.grouping import GROUPINGS, Grouping


class Slots(nn.Module):
    """Queries that are the same for every photo; a region is the mean of what its query takes."""

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        width = config.image.width
        self.slots = nn.Parameter(torch.empty(config.centers, width))
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    @staticmethod
    def count_regions(config: ModelConfig) -> int:
        return config.centers

    def initialize(self) -> None:
        nn.init.normal_(self.slots)

    def forward(self, patches: Tensor, gumbel: Tensor | None = None) -> Grouping:
        soft = (self.slots @ self.key(patches).mT).softmax(dim=1)  # of the slots, for each patch
        hard = torch.zeros_like(soft).scatter(1, soft.argmax(dim=1, keepdim=True), 1.0)
        regions = soft @ self.value(patches) / soft.sum(dim=-1, keepdim=True)
        return Grouping(self.dropout(regions), hard + soft - soft.detach(), soft)


GROUPINGS["slots"] = Slots

if __name__ == "__main__":
    sys.exit(main())
