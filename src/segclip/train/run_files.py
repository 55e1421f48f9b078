"""The files of a run: nothing is ever half-written, and every checkpoint is whole."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from segclip.utils.files import atomic, remove_unfinished

log = logging.getLogger(__name__)

RECIPE, METRICS, MODEL, BEST = "recipe.json", "metrics.jsonl", "model.safetensors", "best.safetensors"
CHECKPOINTS = "checkpoints"


def save_tensors(value: object, file: Path) -> None:
    with atomic(file) as temporary:
        torch.save(value, temporary)


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Save the state after `step` steps and delete all but the last `keep`.

    Where the disk is full, the run goes on with the checkpoints that it has, and the log says so.
    """
    folder = run / CHECKPOINTS
    try:
        folder.mkdir(exist_ok=True)
        remove_unfinished(folder)
        save_tensors({**state, "step": step}, folder / f"{step:08d}.pt")
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where a write fails
        log.error("no checkpoint at step %d: %s; the run goes on, the last one is kept. Free some space", step, error)
        return
    for old in sorted(folder.glob("*.pt"))[:-keep]:
        old.unlink()


def last_checkpoint(run: Path) -> dict[str, Any] | None:
    """The newest state, on the CPU; None where there is none. Nothing in it is executed."""
    files = sorted((run / CHECKPOINTS).glob("*.pt"))
    return torch.load(files[-1], map_location="cpu", weights_only=True) if files else None


def cut_metrics(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which a broken run did after its last checkpoint."""
    lines = file.read_text("utf-8").splitlines(keepends=True) if file.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with atomic(file) as temporary:
        temporary.write_text("".join(kept), "utf-8")


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two recipes: "lr 0.001 -> 0.01"."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += changes(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} {a} -> {b}")
    return found
