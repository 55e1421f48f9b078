"""Pixels as towers take them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def normalise(
    photos: np.ndarray | Tensor, mean: Sequence[float], deviation: Sequence[float]
) -> Float[Tensor, "... 3 H W"]:
    """Pixels of 0-1, minus the mean, by the standard deviation; on the same device.

    Args:
        photos: RGB uint8 (...,H,W,3), 0-255.
        mean, deviation: of R, G and B, as a tower says it of itself; `ImageEncoder.normalise` knows those of its tower.

    Raises:
        ValueError: another type or shape.
    """
    pixels = torch.as_tensor(photos)
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ValueError(f"photos of {pixels.dtype}, shape {tuple(pixels.shape)}; expected uint8 (...,H,W,3)")
    # torch.tensor(..., device=) would wait until a GPU has finished all its work.
    center, unit = (torch.tensor(value).to(pixels.device, non_blocking=True) for value in (mean, deviation))
    return ((pixels.float() / 255 - center) / unit).movedim(-1, -3).contiguous()
