"""Optimiser and schedule (arXiv 2211.14813, training details)."""

import math

import torch
from torch import nn

from segclip.config import TrainConfig

BETAS = (0.9, 0.98)
EPS = 1e-6
# What decides which center a patch goes to.
ASSIGNMENT = tuple(f"image.grouping.{part}" for part in ("centers", "blocks", "norm_centers", "key", "norm_key"))


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Of step 1..steps: linear up to `peak` over the share `warmup`, then a cosine to 0 at the last step."""
    x = step / steps
    if x < warmup:
        return peak * x / warmup
    return peak * (1 + math.cos(math.pi * (x - warmup) / (1 - warmup))) / 2


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is not frozen; weight decay on all but biases.

    Each group's `share` says which part of the schedule's learning rate it gets.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = config.assignment_lr if name.startswith(ASSIGNMENT) else 1.0
            decay = 0.0 if name.endswith("bias") else config.weight_decay
            groups.setdefault((share, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "share": share, "weight_decay": decay} for (share, decay), params in groups.items()],
        lr=config.lr,
        betas=BETAS,
        eps=EPS,
    )
