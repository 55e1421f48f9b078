"""Pixel-adaptive mask refinement: maps follow the photo's colours, a neighbour at a time (arXiv 2005.08104).

Axes: J maps, H W pixels, N neighbours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
NEIGHBOURS = [offset for offset in AROUND if offset != (0, 0)]
SOFTNESS, TINY = 0.1, 1e-8  # of the colours' deviation, in the authors' code


def refine(
    maps: Float[Tensor, "J h w"], photo: Float[Tensor, "3 H W"], steps: int, dilations: Sequence[int]
) -> Float[Tensor, "J H W"]:
    """Let each pixel become the mean of its neighbours, weighted by how alike their colours are, `steps` times.

    Args:
        maps: of any size; resized to the photo's.
        photo: its colours; in which units does not matter.
        steps: how often.
        dilations: distances of the neighbours, in pixels; eight at each.
    """
    maps = F.interpolate(maps[None], photo.shape[1:], mode="bilinear", align_corners=True)[0]
    weights = _weights(photo, dilations)
    for _ in range(steps):
        neighbours = _shifted(maps, dilations, NEIGHBOURS)
        maps = sum((weight * one for weight, one in zip(weights, neighbours, strict=True)), torch.zeros_like(maps))
    return maps


def _weights(photo: Float[Tensor, "3 H W"], dilations: Sequence[int]) -> Float[Tensor, "N H W"]:
    spread = torch.stack(_shifted(photo, dilations, AROUND)).std(dim=0)
    differences = (torch.stack(_shifted(photo, dilations, NEIGHBOURS)) - photo).abs()
    return (-differences / (TINY + SOFTNESS * spread)).mean(dim=1).softmax(dim=0)


def _shifted(
    maps: Float[Tensor, "J H W"], dilations: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> list[Float[Tensor, "J H W"]]:
    """The maps as each neighbour has them; beyond the border is what is on it."""
    height, width = maps.shape[1:]
    found = []
    for d in dilations:
        padded = F.pad(maps[None], (d, d, d, d), mode="replicate")[0]
        found += [padded[:, d + d * y :, d + d * x :][:, :height, :width] for y, x in offsets]
    return found
