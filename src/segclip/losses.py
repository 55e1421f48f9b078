"""The losses of SegCLIP, as pure functions of tensors, and the table of the terms that a recipe weighs.

Axes: B pairs, P patches, C centers, E embedding, V words of the vocabulary, W words of a caption; N patches that are
grouped, of each image; M images with a masked branch.
Source: arXiv 2211.14813, section 3.3; the losses of words are our own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

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
class Words:
    """What words captions hold.

    Attributes:
        ids: (B,W), which words of the vocabulary each pair's captions hold; -1 where a row has no more of them.
        vocabulary: (V,E), embedding of every word, not normalised.
    """

    ids: Int[Tensor, "B W"]
    vocabulary: Float[Tensor, "V E"]


@dataclass(frozen=True)
class LossInputs:
    """All that a term may be computed from; it is None where the term did not say that it needs it.

    Attributes:
        image, text: (B,E), embeddings of the pairs, not normalised.
        scale: multiplier of their cosines.
        settings: of the paper's terms.
        hard, soft: (B,C,N), the assignment: patches given to one center, with the straight-through gradient, and the
            softmax over the centers.
        regions: (B,C,E), embedding of each, not normalised.
        superpixels: (B,N), an id per patch.
        masked: of the masked branch.
        words: of the captions.
    """

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    scale: Float[Tensor, ""]
    settings: LossSettings = PAPER_SETTINGS
    hard: Float[Tensor, "B C N"] | None = None
    soft: Float[Tensor, "B C N"] | None = None
    regions: Float[Tensor, "B C E"] | None = None
    superpixels: Int[Tensor, "B N"] | None = None
    masked: Masked | None = None
    words: Words | None = None

    # What several terms need is computed once.

    @cached_property
    def shares(self) -> Float[Tensor, "B C"]:
        """Of a photo's patches, that each region has."""
        assert self.hard is not None
        return self.hard.detach().mean(dim=-1)

    @cached_property
    def word_logits(self) -> Float[Tensor, "B C V"]:
        """Of each word at each region."""
        assert self.regions is not None and self.words
        return word_logits(self.regions, self.words, self.scale)

    @cached_property
    def best_logits(self) -> Float[Tensor, "B V"]:
        """Of each word at the region that says it best."""
        return best_logits(self.word_logits, self.shares)


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
        words: it needs the words of captions, which cached features come with.
    """

    formula: Callable[[LossInputs], Float[Tensor, ""]]
    across_pairs: bool = False
    superpixels: bool = False
    masked: bool = False
    words: bool = False


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


def word_logits(x: Float[Tensor, "*batch E"], words: Words, scale: Float[Tensor, ""]) -> Float[Tensor, "*batch V"]:
    """`scale` times the cosine of regions' or images' embeddings, not normalised, with each word."""
    return scale * F.normalize(x, dim=-1) @ F.normalize(words.vocabulary, dim=-1).T


def best_logits(logits: Float[Tensor, "B C V"], shares: Float[Tensor, "B C"]) -> Float[Tensor, "B V"]:
    """Of each photo and word: that of the region which says it best. A region without patches has no say.

    Multiple-instance learning: a photo is a bag of regions, of which its captions say only what some of them are
    (Dietterich et al. 1997).

    Args:
        logits: of the words at each region.
        shares: of the photo's patches, that each region has; 0 for an empty one.
    """
    return logits.masked_fill((shares == 0)[..., None], -torch.inf).amax(dim=1)


def words_loss(
    logits: Float[Tensor, "B C V"], shares: Float[Tensor, "B C"], ids: Int[Tensor, "B W"], power: float
) -> Float[Tensor, ""]:
    """Words compete at each region, and the region that says a word best answers for it.

    With p(w | r) the softmax over the vocabulary at region r, and a(r) the region's share of the photo, a caption's
    word w has the likelihood (sum over r of a(r) p(w | r)^q)^(1/q), and the loss is the mean of its -log over the words
    of a caption. With q = 1 this is IBM's model 1 of translation (Brown et al. 1993), in which every region may say
    every word of its photo; the larger q, the more the best region counts alone.

    Args:
        logits: of the words at each region.
        shares: of the photo's patches, that each region has; 0 for an empty one.
        ids: of the captions' words, see `Words`; a pair without any has no say.
        power: q.
    """
    said = logits.log_softmax(dim=-1).take_along_dim(ids.clamp(min=0)[:, None], dim=-1)
    likelihood = (shares.log()[..., None] + power * said).logsumexp(dim=1) / power
    return _mean_of_words(-likelihood, ids)


def vocabulary_loss(logits: Float[Tensor, "B V"], ids: Int[Tensor, "B W"]) -> Float[Tensor, ""]:
    """Words compete for a photo: the cross-entropy of its captions' words among the vocabulary.

    Args:
        logits: of the words at each photo as a whole, or at the region that says a word best.
        ids: of the captions' words, see `Words`; a pair without any has no say.
    """
    return _mean_of_words(-logits.log_softmax(dim=-1).take_along_dim(ids.clamp(min=0), dim=-1), ids)


def retrieval_loss(logits: Float[Tensor, "B V"], ids: Int[Tensor, "B W"]) -> Float[Tensor, ""]:
    """Photos compete for a word: the cross-entropy of a word's photo among it and those that do not hold the word.

    So what is in many photos may not say it, and a word's logits can be compared between photos and their regions.

    Args:
        logits: of the words at each photo of the batch, or at the region that says a word best.
        ids: of the captions' words, see `Words`; a pair without any competes for those of the others only.
    """
    # The -1 after the last word of a row is marked in a column of its own.
    columns = ids.where(ids >= 0, logits.shape[1])
    holds = logits.new_zeros(len(logits), logits.shape[1] + 1, dtype=torch.bool).scatter(1, columns, True)[:, :-1]
    others = logits.masked_fill(holds, torch.finfo(logits.dtype).min).logsumexp(dim=0)
    known = ids.clamp(min=0)
    return _mean_of_words(F.softplus(others[known] - logits.take_along_dim(known, dim=1)), ids)


def _mean_of_words(values: Float[Tensor, "B W"], ids: Int[Tensor, "B W"]) -> Float[Tensor, ""]:
    """The mean over the words of each pair, then over the pairs that have words."""
    held = ids >= 0
    count = held.sum(dim=1)
    own = (values * held).sum(dim=1) / count.clamp(min=1)
    return own.sum() / (count > 0).sum().clamp(min=1)


def _contrastive(inputs: LossInputs) -> Float[Tensor, ""]:
    return contrastive_loss(inputs.image, inputs.text, inputs.scale, inputs.settings.soft_target_scale)


def _superpixel(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.hard is not None and inputs.superpixels is not None
    settings = inputs.settings
    return superpixel_loss(inputs.hard, inputs.superpixels, settings.superpixel_loss, settings.label_smoothing)


def _reconstruction(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.masked
    return reconstruction_loss(inputs.masked.predicted, inputs.masked.target, inputs.masked.masked)


def _words(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.words
    return words_loss(inputs.word_logits, inputs.shares, inputs.words.ids, inputs.settings.words_power)


def _multiple_instance(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.words
    return vocabulary_loss(inputs.best_logits, inputs.words.ids)


def _retrieval(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.words
    return retrieval_loss(inputs.best_logits, inputs.words.ids)


def _presence(inputs: LossInputs) -> Float[Tensor, ""]:
    assert inputs.words
    return vocabulary_loss(word_logits(inputs.image, inputs.words, inputs.scale), inputs.words.ids)


# Anyone can add a term, under the name that a recipe weighs it by: LOSSES["mine"] = Loss(my_formula).
LOSSES: dict[str, Loss] = {
    "contrastive": Loss(_contrastive, across_pairs=True),
    "superpixel": Loss(_superpixel, superpixels=True),
    "reconstruction": Loss(_reconstruction, masked=True),
    "words": Loss(_words, words=True),
    "multiple_instance": Loss(_multiple_instance, words=True),
    "retrieval": Loss(_retrieval, words=True),
    "presence": Loss(_presence, words=True),
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
