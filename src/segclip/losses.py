"""The three losses of SegCLIP, as pure functions of tensors.

Axes: B pairs, P patches, C centers, E embedding.
Source: arXiv 2211.14813, section 3.3.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

SuperpixelLoss = Literal["reference", "one-softmax"]

LABEL_SMOOTHING = 0.1  # of "one-softmax": the usual (arXiv 1512.00567, section 7)


def contrastive_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    soft_target_scale: float | None = None,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of each image against all texts and each text against all images.

    Args:
        image, text: embeddings of the pairs (of all processes), not normalised.
        scale: multiplier of the cosines.
        soft_target_scale: pairs whose captions mean alike are no negatives of each other, so each pair's target is
            shared: the softmax of so many times the cosines of the captions. None: each pair is its own, as the
            authors have it.
    """
    text = F.normalize(text, dim=-1)
    logits = scale * F.normalize(image, dim=-1) @ text.T
    if soft_target_scale is None:
        target = torch.arange(len(logits), device=logits.device)
    else:
        target = (soft_target_scale * text @ text.T).softmax(dim=-1).detach()
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def superpixel_loss(
    hard: Float[Tensor, "B C P"],
    superpixels: Int[Tensor, "B P"],
    kind: SuperpixelLoss = "reference",
    smoothing: float = LABEL_SMOOTHING,
) -> Float[Tensor, ""]:
    """Patches of one superpixel should go to the same center: symmetric KL to the superpixel's mean.

    With m the assignment and u its mean over the patches of the same superpixel:
    [sum KL(u || m) + sum KL(m || u)] / (2 B P C), 0 where each superpixel goes to one center. Of u and m is taken

        "reference": the softmax, as the authors do. They are distributions already, the rows of m one-hot, so this
            flattens them: with 8 centers the loss stays under about 0.02.
        "one-softmax": (1 - e) x + e / C with e = `smoothing`. The assignment's own softmax is the only one; m is 0 in
            all centers but one, where KL would be infinite, and e keeps loss and gradient finite. With e = 0.1 the
            gradient is some 30 times the reference's.

    Args:
        hard: assignment, one-hot over the centers, with its straight-through gradient.
        superpixels: any integers, an id per patch; equal ids of different photos are different superpixels.
        kind: how u and m are kept away from 0.
        smoothing: of "one-softmax", between 0 and 1.
    """
    mean = superpixel_mean(hard, superpixels)
    if kind == "reference":
        log_u, log_m = mean.log_softmax(dim=1), hard.log_softmax(dim=1)
        u, m = log_u.exp(), log_m.exp()
    else:
        u, m = ((1 - smoothing) * x + smoothing / x.shape[1] for x in (mean, hard))
        log_u, log_m = u.log(), m.log()
    # KL(u||m) + KL(m||u) = sum (u - m)(log u - log m)
    return ((u - m) * (log_u - log_m)).sum() / (2 * hard.numel())


def superpixel_mean(x: Float[Tensor, "B C P"], superpixels: Int[Tensor, "B P"]) -> Float[Tensor, "B C P"]:
    """Each patch gets the mean over the patches of its superpixel; time and memory are linear in P."""
    ranks = _ranks(superpixels)
    count = torch.zeros_like(x[:, 0]).scatter_add(1, ranks, torch.ones_like(x[:, 0])).gather(1, ranks)
    index = ranks[:, None].expand_as(x)
    return torch.zeros_like(x).scatter_add(2, index, x).gather(2, index) / count[:, None]


def _ranks(ids: Int[Tensor, "B P"]) -> Int[Tensor, "B P"]:
    """Ids of each row -> 0, 1, 2 ... in their order, without `unique`, which would make a GPU wait for the CPU."""
    ordered, places = ids.sort(dim=1)
    steps = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    return torch.zeros_like(places).scatter(1, places, steps.cumsum(dim=1))


def reconstruction_loss(
    predicted: Float[Tensor, "B P D"], target: Float[Tensor, "B P D"], masked: Float[Tensor, "B P"]
) -> Float[Tensor, ""]:
    """Mean squared error of the pixels, over the masked patches only (`masked` is 1 there, else 0)."""
    error = (predicted - target).square().mean(dim=-1)
    return (error * masked).sum() / masked.sum()
