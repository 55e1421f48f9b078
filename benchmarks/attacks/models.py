"""A model with random weights, so small that it is read and run hundreds of times."""

from pathlib import Path

import torch

from segclip.checkpoints.native import save_model
from segclip.config import ImageConfig, ModelConfig, TextConfig
from segclip.model.segclip import SegCLIP

SMALL = ModelConfig(
    ImageConfig("clip", width=64, trunk_layers=2, region_layers=1, patch=16, side=64, position_grid=4),
    TextConfig("clip", width=64, layers=1, heads=1, context=32),
    embed=64,
    centers=4,
    decoder_layers=1,
)


def small_model(config: ModelConfig = SMALL) -> SegCLIP:
    """The same weights each time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return SegCLIP(config).eval()


def save_small(path: Path) -> Path:
    """Its file, which has CLIP's whole vocabulary."""
    save_model(small_model(), path)
    return path
