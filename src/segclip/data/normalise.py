"""Pixels as the towers take them."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# CLIP's pixel statistics (openai/CLIP, clip/clip.py `_transform`), RGB, for pixels of 0-1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(photos: np.ndarray | Tensor) -> Float[Tensor, "... 3 H W"]:
    """Pixels as the towers take them: 0-1, minus CLIP's mean, by CLIP's standard deviation; on the same device.

    Args:
        photos: RGB uint8 (...,H,W,3), 0-255.

    Raises:
        ValueError: another type or shape.
    """
    pixels = torch.as_tensor(photos)
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ValueError(f"photos of {pixels.dtype}, shape {tuple(pixels.shape)}; expected uint8 (...,H,W,3)")
    mean, std = (torch.tensor(value, device=pixels.device) for value in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).movedim(-1, -3).contiguous()
