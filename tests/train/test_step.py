"""A step in micro-batches: gradients of the whole batch, whatever the losses are and whatever the model draws."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers.small_model import CLIP, small_model
from helpers.small_runs import run_script
from torch import Tensor, nn

from segclip.losses import LOSSES, Loss, LossInputs
from segclip.model.grouping import CenterGrouping, Grouping
from segclip.model.segclip import Losses, SegCLIP
from segclip.train.config import TrainConfig
from segclip.train.photo_batches import PairBatch, PairLearner, draw_noise
from segclip.train.step import backward

BATCH = 4


@pytest.fixture
def batch() -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    return PairBatch(
        pixels=torch.randint(0, 256, (BATCH, 64, 64, 3), generator=generator).byte(),
        token_ids=torch.randint(1, 90, (BATCH, 8), generator=generator),
        superpixels=torch.randint(0, 4, (BATCH, 4, 4), generator=generator),
        noise=draw_noise((0, 0), 0, BATCH, CLIP.centers, 16, torch.device("cpu")),
    )


def step(model: SegCLIP, batch: PairBatch, micro_batch: int | None, weights: dict[str, float]) -> Losses:
    config = TrainConfig(losses=weights)
    learner = PairLearner(model, config)
    model.zero_grad()
    return backward(learner, batch.split(micro_batch), weights=config.losses, settings=config.loss_settings)


def gradients(model: SegCLIP) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def sigmoid(inputs: LossInputs) -> Tensor:
    """Each text by itself belongs to an image or not (arXiv 2303.15343), a loss of another form."""
    cosines = F.normalize(inputs.image, dim=-1) @ F.normalize(inputs.text, dim=-1).T
    signs = 2 * torch.eye(len(cosines)) - 1
    return -F.logsigmoid(signs * (inputs.scale * cosines - 1)).sum(dim=1).mean()


def sharpness(inputs: LossInputs) -> Tensor:
    assert inputs.soft is not None
    return -(inputs.soft * inputs.soft.log()).sum(dim=1).mean()


@pytest.mark.parametrize(
    "weights",
    [
        {"contrastive": 1.0, "superpixel": 1.0, "reconstruction": 1.0},
        {"contrastive": 0.5, "sigmoid": 2.0, "sharpness": 0.25, "superpixel": 0.0},
        {"sharpness": 1.0},
    ],
)
def test_micro_batches_give_the_gradients_of_the_whole_batch(
    weights: dict[str, float], batch: PairBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "sigmoid", Loss(sigmoid, across_pairs=True))
    monkeypatch.setitem(LOSSES, "sharpness", Loss(sharpness))
    model = small_model(CLIP)
    whole = step(model, batch, None, weights)
    expected = gradients(model)
    parts = step(model, batch, 1, weights)
    assert parts.terms.keys() == whole.terms.keys() == {name for name, weight in weights.items() if weight}
    assert whole.total.item() == pytest.approx(sum(weights[name] * term.item() for name, term in whole.terms.items()))
    for name, term in whole.terms.items():
        assert parts.terms[name].item() == pytest.approx(term.item(), rel=1e-4), name
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)
    public = model.losses(
        model.image.normalise(batch.pixels), batch.token_ids, batch.superpixels, noise=batch.noise, weights=weights
    )
    assert public.total.item() == pytest.approx(whole.total.item(), rel=1e-5)


class Dropping(CenterGrouping):
    """Regions with dropout, which remembers what it left."""

    def __init__(self) -> None:
        super().__init__(CLIP, 1)
        self.dropout, self.kept = nn.Dropout(0.5), []

    def forward(self, patches: Tensor, gumbel: Tensor | None = None) -> Grouping:
        found = super().forward(patches, gumbel)
        self.kept.append(kept := self.dropout(torch.ones_like(found.regions)))
        return Grouping(found.regions * kept, found.hard, found.soft)


def test_both_passes_of_a_micro_batch_draw_the_same(batch: PairBatch) -> None:
    """And so the gradients are those of the whole batch under the same masks."""
    model = small_model(CLIP)
    grouping = Dropping()
    grouping.load_state_dict(model.image.grouping.state_dict())
    model.image.grouping = grouping
    model.train()
    weights = {"contrastive": 1.0, "superpixel": 1.0, "reconstruction": 1.0}
    losses = step(model, batch, 2, weights)
    found, kept = gradients(model), grouping.kept
    assert len(kept) == 2 + 2 * 2  # the first pass, and the second with its masked branch
    assert torch.equal(kept[0], kept[2]) and torch.equal(kept[1], kept[4]) and not torch.equal(kept[0], kept[1])

    masks = iter([torch.cat([kept[2], kept[4]]), torch.cat([kept[3], kept[5]])])
    grouping.dropout.forward = lambda input: next(masks)
    whole = step(model, batch, None, weights)
    assert whole.total.item() == pytest.approx(losses.total.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, found[name], atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_learns_the_same() -> None:
    """In a process of its own, as torch cannot compile through the type checks of the tests."""
    run_script("compiled_training_script.py")
