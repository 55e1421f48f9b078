"""One training step: exact losses and gradients of the whole batch, in micro-batches and over processes.

The contrastive loss compares every pair with every other one. So its gradient by the embeddings is found first, from
the embeddings of all micro-batches and processes; then each micro-batch is encoded again, and takes its part of that
gradient back to the parameters (gradient caching, arXiv 2101.06983). With one micro-batch nothing is encoded twice.
Axes: B samples, E embedding.
"""

from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from segclip.losses import contrastive_loss
from segclip.model.segclip import Losses, Parts

# Rows of this process -> rows of all processes, and where its own begin.
Gather = Callable[[Float[Tensor, "B E"]], tuple[Float[Tensor, "_ E"], int]]


def gather_nothing(rows: Float[Tensor, "B E"]) -> tuple[Float[Tensor, "B E"], int]:
    """The `Gather` of a process that is alone."""
    return rows, 0


def backward(
    learner: Callable[..., Parts],
    micro_batches: Sequence[Sized],
    *,
    gather: Gather = gather_nothing,
    world: int = 1,
    soft_target_scale: float | None = None,
    contrast: bool = True,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> Losses:
    """Add the gradients of the whole batch's loss to the parameters.

    Args:
        learner: micro-batch -> Parts; for many processes, one that averages their gradients.
        micro_batches: this process's share of the batch; each process has as many.
        gather: exchanges embeddings between the processes.
        world: how many processes there are.
        soft_target_scale: see `contrastive_loss`.
        contrast: whether the contrastive loss is learned from; it is found in any case.
        no_sync: what keeps the wrapped learner from averaging gradients before the last micro-batch.

    Returns:
        The losses, without gradient: the contrastive one of all processes, the others of this process's share
        (their mean over the processes is the batch's, where shares are equally large).
    """
    only: Parts | None = None
    if len(micro_batches) == 1:
        only = learner(micro_batches[0])
        image, text, scale = only.image, only.text, only.scale
    else:
        with torch.no_grad():
            seen = [learner(pairs, embed_only=True) for pairs in micro_batches]
        image, text = (torch.cat([getattr(parts, name) for parts in seen]) for name in ("image", "text"))
        scale = seen[0].scale
    contrastive, gradients = _contrastive_gradients(image, text, scale, gather, soft_target_scale)

    gradients = gradients if contrast else tuple(map(torch.zeros_like, gradients))
    count, start = sum(map(len, micro_batches)), 0
    superpixel, reconstruction = torch.zeros_like(contrastive), torch.zeros_like(contrastive)
    for number, pairs in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        with nullcontext() if last else no_sync():
            parts = only or learner(pairs)
            share, rows = len(pairs) / max(count, 1), slice(start, start + len(pairs))
            # The processes' gradients are averaged, but each has only its own rows of the one contrastive loss.
            found = world * ((parts.image * gradients[0][rows]).sum() + (parts.text * gradients[1][rows]).sum())
            (found + share * (gradients[2] * parts.scale + parts.superpixel + parts.reconstruction)).backward()
        superpixel += share * parts.superpixel.detach()
        reconstruction += share * parts.reconstruction.detach()
        start += len(pairs)
    return Losses(contrastive, superpixel, reconstruction, contrast * contrastive + superpixel + reconstruction)


def _contrastive_gradients(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    gather: Gather,
    soft_target_scale: float | None,
) -> tuple[Float[Tensor, ""], tuple[Tensor, Tensor, Tensor]]:
    """The loss of all processes' pairs, and its gradients by this process's embeddings and by the scale."""
    leaves = []
    for one in (image, text, scale):
        full = one.detach().to(torch.promote_types(one.dtype, torch.float32))
        leaves.append(full.requires_grad_())
    own_image, own_text, own_scale = leaves
    (all_image, start), (all_text, _) = gather(own_image.detach()), gather(own_text.detach())
    rows = slice(start, start + len(own_image))
    all_image, all_text = all_image.clone(), all_text.clone()
    all_image[rows], all_text[rows] = own_image, own_text
    loss = contrastive_loss(all_image, all_text, own_scale, soft_target_scale)
    by_image, by_text, by_scale = torch.autograd.grad(loss, leaves)
    return loss.detach(), (by_image.to(image.dtype), by_text.to(text.dtype), by_scale)
