"""Compiled and plain runs agree, with activations kept or computed again; see test_step.py."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from helpers.small_model import small_model
from helpers.small_runs import PAIRS
from segclip.train.loop import Run
from segclip.train.photo_batches import PairBatch, PairLearner, draw_noise
from segclip.utils.processes import alone

SIZE = 2


def batch(count: int) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    config = small_model().config
    side, grid = config.image.side, config.image.side // config.image.patch
    ids = torch.randint(1, config.text.vocabulary, (count, 8), generator=generator)
    ids[:, -1] = config.text.vocabulary - 1  # the end
    return PairBatch(
        pixels=torch.randint(0, 256, (count, side, side, 3), generator=generator).byte(),
        token_ids=ids,
        superpixels=torch.randint(0, 4, (count, grid, grid), generator=generator),
        noise=draw_noise((0, 0), 0, count, config.centers, grid**2, torch.device("cpu")),
    )


def run(folder: str, **change: bool) -> tuple[list[float], set[str], int]:
    """Losses of two whole batches and one with bad samples, names of the weights, number of compiled programs."""
    counters.clear()
    model = small_model()
    config = replace(PAIRS, model=model.config, batch=SIZE, micro_batch=None, slow=(), **change)
    own = Run(config, model, PairLearner(model, config), Path(folder), alone("cpu"))
    losses, programs = [], []
    for step, count in enumerate((SIZE, SIZE, 1), start=1):
        losses.append(own.step(batch(count), step, 3)["loss"])
        programs.append(counters["stats"]["unique_graphs"])
    assert programs[0] == programs[-1], "a size that is met once is not compiled"
    return losses, set(own.model.state_dict()), programs[0]


with tempfile.TemporaryDirectory() as folder:
    plain, names, none = run(folder)
    compiled, same_names, programs = run(folder, compile=True)
    again, _, _ = run(folder, compile=True, checkpoint_activations=True)
assert none == 0 and programs > 0
assert same_names == names
for losses in (compiled, again):
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=1e-4, atol=1e-5)
