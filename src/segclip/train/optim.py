"""Optimiser and schedule (arXiv 2211.14813, training details)."""

import math

import torch
from torch import nn

from segclip.losses import weighted_losses
from segclip.model.segclip import SegCLIP
from segclip.train.config import TrainConfig


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Of step 1..steps: linear up to `peak` over the share `warmup`, then a cosine to 0 at the last step."""
    x = step / steps
    if x < warmup:
        return peak * x / warmup
    return peak * (1 + math.cos(math.pi * (x - warmup) / (1 - warmup))) / 2


def freeze(model: SegCLIP, config: TrainConfig) -> None:
    """Leave out of training what the recipe freezes, and what no loss reaches.

    That is the masked branch where no loss needs it, and what the tower computes nothing from.

    Raises:
        ValueError: a prefix that no parameter's name has.
    """
    masked = any(loss.masked for loss in weighted_losses(config.losses).values())
    idle = () if masked else ("reconstruction.",)
    idle += tuple(f"image.tower.{name}" for name in model.image.tower.idle)
    names = [name for name, _ in model.named_parameters()]
    for prefix in (*config.frozen, *config.slow):
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"no parameter's name begins with {prefix!r}, a prefix of frozen or slow; they are called {names[0]}, "
                f"{names[1]} ...: give others"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith((*config.frozen, *idle)))


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is not frozen; weight decay on all but biases.

    Each group's `peak` is its peak learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = config.slow_lr if name.startswith(config.slow) else config.lr
            decay = 0.0 if name.endswith("bias") else config.weight_decay
            groups.setdefault((peak, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "peak": peak, "weight_decay": decay} for (peak, decay), params in groups.items()],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, config: TrainConfig, step: int, steps: int) -> float:
    """Give each group its rate of step 1..steps; returns that of the fast ones."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, steps, group["peak"], config.warmup)
    return learning_rate(step, steps, config.lr, config.warmup)
