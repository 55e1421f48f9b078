"""Losses and small tensor functions against plain loops in float64, written from their definitions."""

import math
from collections.abc import Callable, Sequence
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segclip.config import ModelConfig, SuperpixelLoss
from segclip.losses import (
    Words,
    best_logits,
    contrastive_loss,
    reconstruction_loss,
    retrieval_loss,
    superpixel_loss,
    superpixel_mean,
    vocabulary_loss,
    word_logits,
    words_loss,
)
from segclip.model.grouping import _straight_through, sample_gumbel
from segclip.model.reconstruction import patchify, sin_cos_positions, visible_count

TAU = ModelConfig.tau
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=25, deadline=None, derandomize=True)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_hot(seed: int, batch: int, centers: int, patches: int) -> Tensor:
    return torch.nn.functional.one_hot(normal(seed, batch, centers, patches).argmax(dim=1), centers).mT.double()


def assert_equal(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def contrastive_by_loops(image: Tensor, text: Tensor, scale: float, targets: list[list[float]]) -> float:
    """Mean over images and over texts of the cross-entropy to the pairs' targets."""
    n, total = len(image), 0.0
    for i in range(n):
        of_image = softmax([scale * cosine(image[i], text[j]) for j in range(n)])
        of_text = softmax([scale * cosine(image[j], text[i]) for j in range(n)])
        total -= sum(t * (math.log(a) + math.log(b)) for t, a, b in zip(targets[i], of_image, of_text, strict=True))
    return total / (2 * n)


def cosine(a: Tensor, b: Tensor) -> float:
    return (sum(x * y for x, y in zip(a, b, strict=True)) / (a.norm() * b.norm())).item()


@few
@given(seeds, st.integers(1, 6), st.floats(0.1, 20))
def test_contrastive_loss(seed: int, batch: int, scale: float) -> None:
    image, text = normal(seed, batch, 5), normal(seed + 1, batch, 5)
    expected = contrastive_by_loops(image, text, scale, torch.eye(batch).tolist())
    got = contrastive_loss(image, text, torch.tensor(scale, dtype=torch.float64))
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@few
@given(seeds, st.integers(1, 6), st.floats(0.1, 20), st.floats(0, 30))
def test_contrastive_loss_shares_targets_among_captions_alike(
    seed: int, batch: int, scale: float, soft_target_scale: float
) -> None:
    image, text = normal(seed, batch, 5), normal(seed + 1, batch, 5)
    targets = [softmax([soft_target_scale * cosine(a, b) for b in text]) for a in text]
    expected = contrastive_by_loops(image, text, scale, targets)
    got = contrastive_loss(image, text, torch.tensor(scale, dtype=torch.float64), soft_target_scale)
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_soft_target_scale_without_end_leaves_each_pair_its_own_target() -> None:
    image, text, scale = normal(0, 4, 8), normal(1, 4, 8), torch.tensor(3.0, dtype=torch.float64)
    torch.testing.assert_close(contrastive_loss(image, text, scale, 1e6), contrastive_loss(image, text, scale))


def superpixel_loss_by_loops(hard: Tensor, ids: Tensor, distribution: Callable[[list[float]], list[float]]) -> float:
    total = 0.0
    for photo, own in zip(hard, ids.tolist(), strict=True):
        rows = photo.T.tolist()
        for row, segment in zip(rows, own, strict=True):
            together = [other for other, s in zip(rows, own, strict=True) if s == segment]
            mean = [sum(column) / len(together) for column in zip(*together, strict=True)]
            u, m = distribution(mean), distribution(row)
            total += kl(u, m) + kl(m, u)
    return total / (2 * hard.numel())


def superpixel_loss_by_matrix(hard: Tensor, ids: Tensor) -> Tensor:
    """The authors' formula, with a P x P matrix of which patches share a superpixel."""
    m = hard.mT
    together = (ids[:, :, None] == ids[:, None, :]).to(m.dtype)
    u = together @ m / together.sum(dim=-1, keepdim=True)
    p, q = u.softmax(dim=-1), m.softmax(dim=-1)
    return ((p * (p.log() - q.log())).sum() + (q * (q.log() - p.log())).sum()) / (2 * hard.numel())


def smoothed(row: list[float]) -> list[float]:
    return [0.9 * x + 0.1 / len(row) for x in row]


@few
@given(seeds, st.integers(1, 3), st.integers(2, 5), st.integers(1, 9), st.integers(1, 4))
def test_superpixel_loss(seed: int, batch: int, centers: int, patches: int, segments: int) -> None:
    hard = one_hot(seed, batch, centers, patches)
    ids = torch.randint(segments, (batch, patches), generator=torch.Generator().manual_seed(seed))
    reference = superpixel_loss_by_loops(hard, ids, softmax)
    assert superpixel_loss(hard, ids, "reference").item() == pytest.approx(reference, rel=1e-9, abs=1e-12)
    one = superpixel_loss_by_loops(hard, ids, smoothed)
    assert superpixel_loss(hard, ids, "one-softmax").item() == pytest.approx(one, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("ids", [range(7), range(2**62, 2**62 + 7), [-5, 0, 3, 10**15, 10**6, -(2**63), 1]])
@pytest.mark.parametrize("patches", [1, 49, 196])
def test_pooling_equals_the_matrix_of_patches_that_share_a_superpixel(ids: Sequence[int], patches: int) -> None:
    chosen = torch.randint(len(ids), (3, patches), generator=torch.Generator().manual_seed(patches))
    superpixels = torch.tensor(ids)[chosen]
    hard = (normal(0, 3, 8, patches) * 5).softmax(dim=1).requires_grad_()
    got, expected = superpixel_loss(hard, superpixels), superpixel_loss_by_matrix(hard, superpixels)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    by_got, by_expected = (torch.autograd.grad(loss, hard)[0] for loss in (got, expected))
    torch.testing.assert_close(by_got, by_expected, rtol=0, atol=1e-12)


def test_pooling_takes_ids_of_any_integer_type() -> None:
    hard, ids = one_hot(0, 2, 4, 30), torch.randint(5, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = superpixel_loss(hard, ids)
    for dtype in (torch.int8, torch.int16, torch.int32):
        assert torch.equal(superpixel_loss(hard, ids.to(dtype)), expected)


def test_pooling_never_waits_for_values() -> None:
    """A GPU would stand still; tensors without values show where it would happen."""
    hard, ids = torch.empty(2, 8, 196, device="meta"), torch.empty(2, 196, dtype=torch.int64, device="meta")
    assert superpixel_loss(hard.requires_grad_(), ids).shape == ()
    with pytest.raises(RuntimeError):  # it is what others would do
        ids.unique(return_inverse=True)


def test_pooling_stays_within_a_photo() -> None:
    hard, ids = one_hot(0, 4, 5, 20), torch.randint(3, (4, 20), generator=torch.Generator().manual_seed(0))
    alone = torch.stack([superpixel_mean(hard[b : b + 1], ids[b : b + 1])[0] for b in range(4)])
    assert_equal(superpixel_mean(hard, ids), alone)


@pytest.mark.parametrize("kind", get_args(SuperpixelLoss))
def test_superpixel_loss_is_zero_where_superpixels_agree_and_positive_elsewhere(kind: SuperpixelLoss) -> None:
    hard = torch.eye(3, dtype=torch.float64)[None, :, [0, 0, 2, 2]].clone().requires_grad_()
    assert superpixel_loss(hard, torch.tensor([[5, 5, 8, 8]]), kind).item() == pytest.approx(0, abs=1e-15)
    assert superpixel_loss(hard, torch.tensor([[5, 6, 7, 8]]), kind).item() == pytest.approx(0, abs=1e-15)
    ids = torch.tensor([[5, 8, 8, 5]])
    assert superpixel_loss(hard, ids, kind) > 1e-3
    (gradient,) = torch.autograd.grad(superpixel_loss(hard, ids, kind), hard)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: superpixel_loss(x, ids, kind), (hard,))


def test_one_softmax_is_steeper_than_the_reference_and_bounded() -> None:
    """Half of a superpixel at one center, half at another: about the worst."""
    hard, ids = one_hot(0, 1, 8, 8) * 0, torch.zeros(1, 8, dtype=torch.int64)
    hard[0, 0, :4] = hard[0, 1, 4:] = 1
    reference, one = superpixel_loss(hard, ids).item(), superpixel_loss(hard, ids, "one-softmax").item()
    assert 0 < reference < 0.02 < 5 * reference < one < math.log(8 / 0.1) / 8


def test_one_softmax_pulls_the_patches_of_a_superpixel_to_one_center() -> None:
    """The straight-through gradient of hard assignments makes superpixels agree, each by itself."""
    ids = torch.arange(4).repeat_interleave(10)[None]
    logits = normal(0, 1, 5, 40) + torch.eye(5, dtype=torch.float64)[None, :, :4].repeat_interleave(10, dim=2)
    logits.requires_grad_()
    optimiser = torch.optim.SGD([logits], lr=20.0)
    torch.manual_seed(0)
    before = purity(logits, ids)
    for _ in range(100):
        optimiser.zero_grad()
        superpixel_loss(
            _straight_through((logits + sample_gumbel(logits.shape, like=logits)) / TAU), ids, "one-softmax"
        ).backward()
        optimiser.step()
    assert before < 0.7 and purity(logits, ids) > 0.95


def purity(logits: Tensor, ids: Tensor) -> float:
    """Mean share of a superpixel's patches that go to its most frequent center."""
    hard = torch.nn.functional.one_hot(logits.detach().argmax(dim=1), logits.shape[1]).mT.double()
    return superpixel_mean(hard, ids).amax(dim=1).mean().item()


@few
@given(seeds, st.integers(1, 3), st.integers(2, 8))
def test_reconstruction_loss_counts_masked_patches_only(seed: int, batch: int, patches: int) -> None:
    predicted, target = normal(seed, batch, patches, 6), normal(seed + 1, batch, patches, 6)
    masked = (normal(seed + 2, batch, patches) > 0).double()
    masked[:, 0] = 1
    errors = [
        (predicted[b, p, i] - target[b, p, i]).item() ** 2
        for b in range(batch)
        for p in range(patches)
        for i in range(6)
        if masked[b, p]
    ]
    expected = sum(errors) / len(errors)
    assert reconstruction_loss(predicted, target, masked).item() == pytest.approx(expected, rel=1e-10)


# A photo of two regions, a third of it and two thirds, and an empty one; three words at right angles. A region that is
# on a word says it e^scale times as likely as the others; what lies between two says each e^(scale / sqrt 2) times so.
VOCABULARY = torch.eye(3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)[:, None]
REGIONS = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 7.0]]], dtype=torch.float64)
SHARES = torch.tensor([[1 / 3, 2 / 3, 0.0]], dtype=torch.float64)
SCALE = torch.tensor(2.0, dtype=torch.float64)
ON, BETWEEN = math.exp(2), math.exp(2 / math.sqrt(2))
FIRST = [ON / (ON + 2), 1 / (ON + 2), 1 / (ON + 2)]  # what the first region says
SECOND = [1 / (1 + 2 * BETWEEN), BETWEEN / (1 + 2 * BETWEEN), BETWEEN / (1 + 2 * BETWEEN)]


def logits_of(regions: Tensor = REGIONS) -> Tensor:
    return word_logits(regions, Words(torch.zeros(1, 0, dtype=torch.int64), VOCABULARY), SCALE)


def ids_of(*ids: int) -> Tensor:
    return torch.tensor([ids], dtype=torch.int64).reshape(1, -1)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_words_loss_by_hand(power: float) -> None:
    """Of a caption with words 0 and 2; the empty region, which lies on word 2, has no say."""
    likelihood = [(a**power / 3 + b**power * 2 / 3) ** (1 / power) for a, b in zip(FIRST, SECOND, strict=True)]
    expected = -(math.log(likelihood[0]) + math.log(likelihood[2])) / 2
    for ids in (ids_of(0, 2), ids_of(0, 2, -1, -1)):
        assert words_loss(logits_of(), SHARES, ids, power).item() == pytest.approx(expected, rel=1e-12)


def test_with_a_large_power_the_best_region_answers_alone() -> None:
    found = words_loss(logits_of(), SHARES, ids_of(0, 1), 1e4)
    assert found.item() == pytest.approx(-(math.log(FIRST[0]) + math.log(SECOND[1])) / 2, abs=1e-3)
    regions = REGIONS.clone().requires_grad_()
    words_loss(logits_of(regions), SHARES, ids_of(0), 50.0).backward()
    assert regions.grad is not None and regions.grad.isfinite().all()
    size = regions.grad.norm(dim=-1)[0].tolist()
    assert size[0] > 1e-3 and size[1] < 1e-12 and size[2] == 0


def test_the_best_region_says_a_word_for_its_photo() -> None:
    """What each word lacks of the score of a region that is on it; the empty region, on word 2, has no say."""
    between = 2 / math.sqrt(2)
    expected = torch.tensor([[2.0, between, between]], dtype=torch.float64)
    torch.testing.assert_close(best_logits(logits_of(), SHARES), expected)
    full = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    expected[0, 2] = 2.0
    torch.testing.assert_close(best_logits(logits_of(), full), expected)


def test_vocabulary_loss_by_hand() -> None:
    for ids in (ids_of(0, 2), ids_of(2, 0, -1)):
        found = vocabulary_loss(logits_of()[:, 1], ids)
        assert found.item() == pytest.approx(-(math.log(SECOND[0]) + math.log(SECOND[2])) / 2, rel=1e-12)


def test_retrieval_loss_by_hand() -> None:
    """A photo competes for its words with those that do not hold them; the third photo holds none, and competes."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.5, 3.0, 0.0], [1.0, 0.0, 9.0]], dtype=torch.float64)
    e = math.exp
    first = math.log(e(2) / (e(2) + e(0.5) + e(1))), math.log(e(1) / (e(1) + e(0)))
    second = math.log(e(3) / (e(3) + e(0)))
    expected = -(sum(first) / 2 + second) / 2
    found = retrieval_loss(logits, torch.tensor([[0, 1], [1, -1], [-1, -1]]))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_word_of_all_photos_has_nothing_to_be_told_from() -> None:
    logits = torch.ones(2, 3, dtype=torch.float64).requires_grad_()
    loss = retrieval_loss(logits, torch.tensor([[1], [1]]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0 and not gradient.any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, ids: words_loss(logits, SHARES.expand(len(logits), -1), ids, 3.0),
        lambda logits, ids: vocabulary_loss(best_logits(logits, SHARES.expand(len(logits), -1)), ids),
    ],
    ids=["words", "vocabulary"],
)
def test_pairs_without_words_have_no_say(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The others count alike, however many words they have."""
    logits = torch.cat([logits_of(), logits_of(REGIONS.flip(1) + 1), logits_of()]).requires_grad_()
    one, two = loss(logits[:1], ids_of(0)), loss(logits[1:2], ids_of(1, 2))
    both = loss(logits, torch.tensor([[0, -1], [1, 2], [-1, -1]]))
    assert both.item() == pytest.approx((one.item() + two.item()) / 2, rel=1e-12)
    (gradient,) = torch.autograd.grad(both, logits)
    assert gradient.isfinite().all() and gradient[0].any() and not gradient[2].any()


@pytest.mark.parametrize("ids", [torch.full((3, 2), -1), torch.zeros(3, 0, dtype=torch.int64)], ids=["padded", "none"])
@pytest.mark.parametrize(
    "loss",
    [lambda logits, ids: words_loss(logits, SHARES.expand(3, -1), ids, 3.0)]
    + [lambda logits, ids, loss=loss: loss(logits[:, 0], ids) for loss in (vocabulary_loss, retrieval_loss)],
    ids=["words", "vocabulary", "retrieval"],
)
def test_without_any_word_the_losses_are_0(loss: Callable[[Tensor, Tensor], Tensor], ids: Tensor) -> None:
    logits = logits_of().expand(3, -1, -1).clone().requires_grad_()
    nothing = loss(logits, ids)
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0 and not gradient.any()


def test_straight_through_is_one_hot_forward_and_softmax_backward() -> None:
    logits, weight = normal(0, 2, 4, 7).requires_grad_(), normal(1, 2, 4, 7)
    hard = _straight_through(logits)
    torch.testing.assert_close(hard.detach().sort(dim=1).values[:, :-1], torch.zeros(2, 3, 7, dtype=torch.float64))
    torch.testing.assert_close(hard.argmax(dim=1), logits.argmax(dim=1))
    (got,) = torch.autograd.grad((hard * weight).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(dim=1) * weight).sum(), logits)
    assert_equal(got, expected)


def test_gumbel_noise_picks_centers_as_often_as_their_softmax() -> None:
    """The Gumbel-max property (arXiv 1611.01144, section 2)."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0])[None, :, None]
    hard = _straight_through((logits + sample_gumbel((1, 3, 200_000), like=logits)) / TAU)
    torch.testing.assert_close(hard.mean(dim=-1)[0], logits.softmax(dim=1)[0, :, 0], atol=5e-3, rtol=0)


@pytest.mark.parametrize(("patches", "visible"), [(196, 48), (256, 63), (36, 8), (144, 35)])
def test_visible_count(patches: int, visible: int) -> None:
    assert visible_count(patches) == math.floor((patches + 1) * 0.25) - 1 == visible


def test_patchify_lays_pixels_out_row_column_channel() -> None:
    pixels = torch.arange(2 * 3 * 6 * 9).reshape(2, 3, 6, 9).double()
    patches = patchify(pixels, 3)
    assert patches.shape == (2, 6, 27)
    for b in range(2):
        for p in range(6):
            row, column = divmod(p, 3)
            expected = [
                pixels[b, channel, row * 3 + y, column * 3 + x].item()
                for y in range(3)
                for x in range(3)
                for channel in range(3)
            ]
            assert patches[b, p].tolist() == expected


def test_sin_cos_positions() -> None:
    rows, columns, width = 3, 5, 16
    half = width // 2
    got = sin_cos_positions(rows, columns, width)
    for row in range(rows):
        for column in range(columns):
            expected = []
            for position in (column, row):
                angles = [position * 10000 ** (-i / (half / 2)) for i in range(half // 2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(got[row * columns + column], torch.tensor(expected))
