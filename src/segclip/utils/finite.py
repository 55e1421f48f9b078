"""Weights that are numbers: NaN and infinity are none, and what computes with them says nothing of it."""

from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors of floating-point numbers with a NaN or an infinite one."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    """In one pass, without a mask of the tensor's size."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in torch.aminmax(tensor))
