"""The losses of SegCLIP, as pure functions of tensors, and the table of the terms that a recipe weighs.

Axes: B pairs, P patches, C centers, D width, E embedding; R images that are grouped, of N patches each; M images with a
masked branch.
Source: arXiv 2211.14813, section 3.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from segclip.config import LABEL_SMOOTHING, PAPER_SETTINGS, LossSettings, SuperpixelLoss
from segclip.utils.tables import choose


@dataclass(frozen=True)
class Masked:
    """What the masked branch found.

    Attributes:
        predicted: (M,P,pixels), the pixels of each patch, as the regions of the visible ones explain them.
        target: (M,P,pixels), the photos' own.
        masked: (M,P), 1 for a patch that was not seen, else 0.
    """

    predicted: Float[Tensor, "M P pixels"]
    target: Float[Tensor, "M P pixels"]
    masked: Float[Tensor, "M P"]


@dataclass(frozen=True)
class LossInputs:
    """All that a term may be computed from; it is None where the term did not say that it needs it.

    Attributes:
        image, text: (B,E), embeddings of the pairs, not normalised.
        scale: multiplier of their cosines.
        settings: of the paper's terms.
        hard, soft: (R,C,N), the assignment: patches given to one center, with the straight-through gradient, and the
            softmax over the centers. R is B, or less where an image is a mosaic of several photos.
        regions: (R,C,D), the grouping's.
        superpixels: (R,N), an id per patch.
        masked: of the masked branch.
    """

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    scale: Float[Tensor, ""]
    settings: LossSettings = PAPER_SETTINGS
    hard: Float[Tensor, "R C N"] | None = None
    soft: Float[Tensor, "R C N"] | None = None
    regions: Float[Tensor, "R C D"] | None = None
    superpixels: Int[Tensor, "R N"] | None = None
    masked: Masked | None = None


@dataclass(frozen=True)
class Loss:
    """A term of the loss: its formula, and what it needs.

    Attributes:
        formula: gives a scalar, the mean over the pairs that it is given.
        across_pairs: it compares each pair with all others of the batch. Such a term is given `image`, `text` and
            `scale` alone, of all micro-batches and processes at once. Any other is given those of one micro-batch, with
            `hard`, `soft` and `regions`.
        superpixels: it needs the superpixels, and is left out where there are none.
        masked: it needs the masked branch, which costs a second pass over a part of the patches.
    """

    formula: Callable[[LossInputs], Float[Tensor, ""]]
    across_pairs: bool = False
    superpixels: bool = False
    masked: bool = False


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
    ordered, order = ids.sort(dim=1)
    steps = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    return torch.zeros_like(order).scatter(1, order, steps.cumsum(dim=1))


def reconstruction_loss(
    predicted: Float[Tensor, "B P D"], target: Float[Tensor, "B P D"], masked: Float[Tensor, "B P"]
) -> Float[Tensor, ""]:
    """Mean squared error of the pixels, over the masked patches only (`masked` is 1 there, else 0)."""
    error = (predicted - target).square().mean(dim=-1)
    return (error * masked).sum() / masked.sum()


def _contrastive(inputs: LossInputs) -> Float[Tensor, ""]:
    return contrastive_loss(inputs.image, inputs.text, inputs.scale, inputs.settings.soft_target_scale)


def _superpixel(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.hard is not None and inputs.superpixels is not None
    settings = inputs.settings
    return superpixel_loss(inputs.hard, inputs.superpixels, settings.superpixel_loss, settings.label_smoothing)


def _reconstruction(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.masked
    return reconstruction_loss(inputs.masked.predicted, inputs.masked.target, inputs.masked.masked)


# Anyone can add a term, under the name that a recipe weighs it by: LOSSES["mine"] = Loss(my_formula).
LOSSES: dict[str, Loss] = {
    "contrastive": Loss(_contrastive, across_pairs=True),
    "superpixel": Loss(_superpixel, superpixels=True),
    "reconstruction": Loss(_reconstruction, masked=True),
}


def weighted_losses(weights: Mapping[str, float]) -> dict[str, Loss]:
    """The terms that have a weight, by name. Raises ValueError for a name that is not in LOSSES."""
    return {name: choose(LOSSES, name, "loss") for name, weight in weights.items() if weight}


def compute_terms(losses: Mapping[str, Loss], inputs: LossInputs) -> dict[str, Float[Tensor, ""]]:
    """The value of each term."""
    return {name: loss.formula(inputs) for name, loss in losses.items()}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """The loss that is trained; of at least one term."""
    first, *rest = (weights[name] * term for name, term in terms.items())
    return sum(rest, first)
