"""One training step: exact losses and gradients of the whole batch, in micro-batches and over processes.

Some losses, such as the contrastive one, compare every pair with every other one. So their gradient by the embeddings
is found first, from the embeddings of all micro-batches and processes; then each micro-batch is encoded again, with the
same random numbers, and takes its part of that gradient back to the parameters (gradient caching, arXiv 2101.06983).
With one micro-batch nothing is encoded twice.
Axes: B samples, E embedding.
"""

from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from segclip.config import PAPER_SETTINGS, PAPER_WEIGHTS, LossSettings
from segclip.losses import weighted_losses, weighted_sum
from segclip.model.segclip import Losses, Parts, pair_terms

# Rows of this process -> rows of all processes, and where its own begin.
Gather = Callable[[Float[Tensor, "B E"]], tuple[Float[Tensor, "_ E"], int]]
Gradients = tuple[Float[Tensor, "B E"], Float[Tensor, "B E"], Float[Tensor, ""]]  # by images, texts and scale
States = list[Tensor]  # of the generators of random numbers


def gather_nothing(rows: Float[Tensor, "B E"]) -> tuple[Float[Tensor, "B E"], int]:
    """The `Gather` of a process that is alone."""
    return rows, 0


def backward(
    learner: Callable[..., Parts],
    micro_batches: Sequence[Sized],
    *,
    gather: Gather = gather_nothing,
    world: int = 1,
    weights: Mapping[str, float] = PAPER_WEIGHTS,
    settings: LossSettings = PAPER_SETTINGS,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> Losses:
    """Add the gradients of the whole batch's loss to the parameters.

    Args:
        learner: micro-batch -> Parts, with these weights and settings; for many processes, one that averages their
            gradients. With `embed_only` it may leave out what comes after the embeddings.
        micro_batches: this process's share of the batch; each process has as many.
        gather: exchanges embeddings between the processes.
        world: how many processes there are.
        weights: of the losses, by name.
        settings: of the paper's losses.
        no_sync: what keeps the wrapped learner from averaging gradients before the last micro-batch.

    Returns:
        The losses, without gradient: those that compare pairs of all processes, the others of this process's share
        (their mean over the processes is the batch's, where shares are equally large).
    """
    compared = any(loss.across_pairs for loss in weighted_losses(weights).values())
    only = learner(micro_batches[0]) if len(micro_batches) == 1 else None
    states: list[States] = []
    terms, gradients = {}, None
    if compared:
        seen = [only] if only else _embed(learner, micro_batches, states)
        terms, gradients = _pair_gradients(seen, gather, weights, settings)
    count, start = sum(map(len, micro_batches)), 0
    for number, pairs in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        with nullcontext() if last else no_sync():
            if states:
                _restore(states[number])
            parts = only or learner(pairs)
            share, rows = len(pairs) / max(count, 1), slice(start, start + len(pairs))
            by_image, by_text, by_scale = _own_gradients(gradients, rows, parts)
            # The processes' gradients are averaged, but each has only its own rows of what compares all pairs.
            found = world * ((parts.image * by_image).sum() + (parts.text * by_text).sum())
            own = sum((weights[name] * term for name, term in parts.terms.items()), by_scale * parts.scale)
            (found + share * own).backward()
        for name, term in parts.terms.items():
            terms[name] = terms.get(name, torch.zeros_like(term)) + share * term.detach()
        start += len(pairs)
    terms = {name: terms[name] for name in weights if name in terms}
    return Losses(terms, weighted_sum(terms, weights))


@torch.no_grad()
def _embed(learner: Callable[..., Parts], micro_batches: Sequence[Sized], states: list[States]) -> list[Parts]:
    """The embeddings of each micro-batch; adds to `states` those that its random numbers started from."""
    seen = []
    for pairs in micro_batches:
        states.append([generator.get_rng_state() for generator in _generators()])
        seen.append(learner(pairs, embed_only=True))
    return seen


def _restore(states: States) -> None:
    for generator, state in zip(_generators(), states, strict=True):
        generator.set_rng_state(state)


def _generators() -> list[ModuleType]:
    """Whose random numbers a pass may draw, in a module with dropout: the processor's and the accelerator's."""
    return [torch.random, *([torch.get_device_module()] if torch.accelerator.is_available() else [])]


def _pair_gradients(
    seen: Sequence[Parts], gather: Gather, weights: Mapping[str, float], settings: LossSettings
) -> tuple[dict[str, Tensor], Gradients]:
    """What compares all processes' pairs, and the gradients by this process's embeddings and by the scale."""
    image, text, scale = torch.cat([one.image for one in seen]), torch.cat([one.text for one in seen]), seen[0].scale
    leaves = []
    for one in (image, text, scale):
        full = one.detach().to(torch.promote_types(one.dtype, torch.float32))
        leaves.append(full.requires_grad_())
    own_image, own_text, own_scale = leaves
    (all_image, start), (all_text, _) = gather(own_image.detach()), gather(own_text.detach())
    rows = slice(start, start + len(own_image))
    all_image, all_text = all_image.clone(), all_text.clone()
    all_image[rows], all_text[rows] = own_image, own_text
    terms = pair_terms(all_image, all_text, own_scale, weights, settings)
    by_image, by_text, by_scale = torch.autograd.grad(weighted_sum(terms, weights), leaves, materialize_grads=True)
    found = {name: term.detach() for name, term in terms.items()}
    return found, (by_image.to(image.dtype), by_text.to(text.dtype), by_scale)


def _own_gradients(gradients: tuple[Tensor, Tensor, Tensor] | None, rows: slice, parts: Parts) -> Gradients:
    """Those of a micro-batch; 0 where nothing compares pairs, so that every process still averages every gradient."""
    if gradients is None:
        return torch.zeros_like(parts.image), torch.zeros_like(parts.text), torch.zeros_like(parts.scale)
    by_image, by_text, by_scale = gradients
    return by_image[rows], by_text[rows], by_scale
