"""Optimiser and schedule (arXiv 2211.14813, training details)."""

import math

import torch
from torch import nn

from segclip.config import TrainConfig

BETAS = (0.9, 0.98)
EPS = 1e-6


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Of step 1..steps: linear up to `peak` over the share `warmup`, then a cosine to 0 at the last step."""
    x = step / steps
    if x < warmup:
        return peak * x / warmup
    return peak * (1 + math.cos(math.pi * (x - warmup) / (1 - warmup))) / 2


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is not frozen; weight decay on all but biases."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    biases = [p for name, p in named if name.endswith("bias")]
    others = [p for name, p in named if not name.endswith("bias")]
    groups = [{"params": others, "weight_decay": config.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, eps=EPS)
