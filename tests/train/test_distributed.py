"""Several processes, and micro-batches: what one process and the whole batch give."""

from pathlib import Path

import pytest
import torch
from helpers.small_runs import run_script


@pytest.mark.slow
def test_micro_batches_and_processes_give_the_whole_batchs_losses_and_gradients(tmp_path: Path) -> None:
    """Float64, given noise, all three losses, twenty steps: plain, with micro-batches, on 2 processes, sharded.

    The script also holds that processes with other recipes do not train together.
    """
    ways = {"plain": ("0", "no", 1), "micro": ("2", "no", 1), "two": ("0", "no", 2), "shard": ("2", "shard", 2)}
    found = {}
    for name, (micro, shard, count) in ways.items():
        run_script("steps_script.py", str(tmp_path / name), micro, shard, processes=count)
        found[name] = torch.load(tmp_path / name, weights_only=True)
    steps, ended = found.pop("plain")
    assert len(steps) == 20 and all(part > 0 for losses, _ in steps for part in losses)
    for name, (others, end) in found.items():
        for (losses, gradients), (expected, right) in zip(others, steps, strict=True):
            assert losses == pytest.approx(expected, abs=1e-6), name
            assert gradients.keys() == right.keys()
            for parameter, gradient in gradients.items():
                torch.testing.assert_close(gradient, right[parameter], atol=1e-5, rtol=0)
        for parameter, value in end.items():
            torch.testing.assert_close(value, ended[parameter], atol=1e-6, rtol=0)
