"""What towers are given their input by: positions of patches, embeddings of tokens."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from segclip.config import TextConfig

HEAD_WIDTH = 64  # channels of an attention head where the configuration gives no number of heads (CLIP's, DINOv2's)


def resize_positions(
    positions: Float[Tensor, "M D"], rows: int, columns: int, offset: float = 0.0
) -> Float[Tensor, "N D"]:
    """Position embeddings, the class token's first, of a square grid of patches -> those of another grid.

    Args:
        positions: of the stored grid.
        rows, columns: of the other grid.
        offset: added to both where the factor of the resizing is made of them, which moves every position a little:
            0.1 in DINO's code and in those of most dense heads after it.
    """
    grid = math.isqrt(len(positions) - 1)
    if not torch.compiler.is_exporting() and (rows, columns) == (grid, grid):  # an export knows no sizes
        return positions
    stored = positions[1:].T.reshape(1, -1, grid, grid)
    if offset:
        factors = (rows + offset) / grid, (columns + offset) / grid
        resized = F.interpolate(stored, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        resized = F.interpolate(stored, (rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], resized.flatten(2)[0].T])


def empty_embedding(config: TextConfig) -> nn.Embedding:
    """Not drawn here: SegCLIP does it, and on the meta device drawing imports half of torch, over a second."""
    return nn.Embedding.from_pretrained(torch.empty(config.vocabulary, config.width), freeze=False)
