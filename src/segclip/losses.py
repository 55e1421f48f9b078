"""The three losses of SegCLIP, as pure functions of tensors.

Axes: B pairs, P patches, C centers, E embedding.
Source: arXiv 2211.14813, section 3.3.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def contrastive_loss(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    likeness: float | None = None,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of each image against all texts and each text against all images.

    Args:
        image, text: embeddings of the pairs (of all processes), not normalised.
        scale: multiplier of the cosines.
        likeness: pairs whose captions mean alike are no negatives of each other, so each pair's target is shared: the
            softmax of `likeness` times the cosines of the captions. None: each pair is its own, as the authors have it.
    """
    text = F.normalize(text, dim=-1)
    logits = scale * F.normalize(image, dim=-1) @ text.T
    if likeness is None:
        target = torch.arange(len(logits), device=logits.device)
    else:
        target = (likeness * text @ text.T).softmax(dim=-1).detach()
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def superpixel_loss(hard: Float[Tensor, "B C P"], superpixels: Int[Tensor, "B P"]) -> Float[Tensor, ""]:
    """Patches of one superpixel should go to the same center: symmetric KL to the superpixel's mean.

    The softmax is taken of rows that are one-hot already, as the authors do; it bounds the loss near 0.02.

    Args:
        hard: assignment with its straight-through gradient.
        superpixels: an id per patch; equal ids of different photos are different superpixels.
    """
    assignment = hard.mT
    together = (superpixels[:, :, None] == superpixels[:, None, :]).to(hard.dtype)
    mean = together @ assignment / together.sum(dim=-1, keepdim=True)
    p, q = mean.log_softmax(dim=-1), assignment.log_softmax(dim=-1)
    # KL(p||q) + KL(q||p) = sum (p - q)(log p - log q)
    return ((p.exp() - q.exp()) * (p - q)).sum() / (2 * hard.numel())


def reconstruction_loss(
    predicted: Float[Tensor, "B P D"], target: Float[Tensor, "B P D"], masked: Float[Tensor, "B P"]
) -> Float[Tensor, ""]:
    """Mean squared error of the pixels, over the masked patches only (`masked` is 1 there, else 0)."""
    error = (predicted - target).square().mean(dim=-1)
    return (error * masked).sum() / masked.sum()
