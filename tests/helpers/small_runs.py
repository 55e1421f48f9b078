"""Recipes of small runs, and what tests ask of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from helpers.small_model import SENTENCE
from segclip.checkpoints.native import load_model
from segclip.config import PAPER_WEIGHTS
from segclip.train.config import CacheConfig, TrainConfig
from segclip.train.recipes import ASSIGNMENT, TOWERS

HELPERS = Path(__file__).parent
CACHE = CacheConfig(crops=2, patches=12, reconstruction_fraction=0.5)
LOSSES = {**PAPER_WEIGHTS, "words": 1.0, "multiple_instance": 0.5, "retrieval": 0.5, "presence": 0.5}
CACHED = TrainConfig(
    cache=CACHE, init_from="-", init_centers="k-means", epochs=3, batch=4, captions="one", losses=LOSSES,
    soft_target_scale=12.0, frozen=TOWERS, slow=ASSIGNMENT, lr=2e-3, slow_lr=2e-4, precision="bf16", save_every=2,
    validate_every=100, trackers=(), workers=0,
)  # fmt: skip
PAIRS = TrainConfig(
    model=SENTENCE, epochs=2, batch=4, micro_batch=2, captions="all", lr=1e-3, slow_lr=1e-4, slow=("text.",),
    save_every=3, validate_every=100, trackers=(), workers=0,
)  # fmt: skip


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "samples_per_s"} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run / "model.safetensors").state_dict()


def assert_same_run(run: Path, whole: Path) -> None:
    assert metrics(run) == metrics(whole)
    ended, expected = weights(run), weights(whole)
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def run_script(*arguments: str, processes: int = 1) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS.parent), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(command, cwd=HELPERS, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
