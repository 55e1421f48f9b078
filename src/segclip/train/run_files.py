"""The files of a run: each is whole or not there."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch

from segclip.config import current_name
from segclip.train.config import TrainConfig
from segclip.utils.files import atomic, remove_unfinished

log = logging.getLogger(__name__)

RECIPE, METRICS, MODEL, BEST = "recipe.json", "metrics.jsonl", "model.safetensors", "best.safetensors"
CHECKPOINTS = "checkpoints"
FREE = ("workers", "save_every", "keep_checkpoints", "trackers", "compile")  # fields that may change when a run goes on


def read_recipe(run: Path) -> tuple[TrainConfig, str]:
    """The recipe of a run, and where its data is. Raises ValueError where there is none."""
    try:
        found = json.loads((run / RECIPE).read_text("utf-8"))
        return TrainConfig.from_json(json.dumps(found["recipe"])), found["data"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{run / RECIPE}: no recipe of a run ({error}); give the folder of a run") from error


def keep_recipe(run: Path, config: TrainConfig, address: str, data: list[str], *, write: bool) -> None:
    """Keep the recipe beside the run; refuse to go on with another one.

    Args:
        run: folder of the run; made if missing.
        config: the recipe, with the model that is trained.
        address: where the data is.
        data: checksums of its shards.
        write: whether this process writes it.

    Raises:
        ValueError: the folder holds a run with another recipe or other data.
    """
    run.mkdir(parents=True, exist_ok=True)
    file, recipe = run / RECIPE, json.loads(config.to_json())
    found = None
    if file.exists():
        found, _ = read_recipe(run)
        free = {name: getattr(config, name) for name in FREE}
        model = found.model or config.model  # 0.1 did not keep the model that it trained over weights
        old = json.loads(dataclasses.replace(found, **free, model=model).to_json())
        kept = json.loads(file.read_text("utf-8")).get("shards")
        if differences := changes({**old, "shards": kept}, {**recipe, "shards": data}):
            raise ValueError(
                f"{run}: a run with another recipe or other data ({', '.join(differences)}); go on with "
                f"segclip train --resume {run}, or give another folder"
            )
    if write and not (found and found.model):
        with atomic(file) as temporary:
            content = {"recipe": recipe, "data": address, "shards": data}
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


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
    return _with_current_names(torch.load(files[-1], map_location="cpu", weights_only=True)) if files else None


def _with_current_names(state: dict[str, Any]) -> dict[str, Any]:
    """A state that 0.1 may have written, with the names that parameters have today."""

    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        return {current_name(name): value for name, value in tensors.items()}

    optimiser = state["optimiser"]
    groups = [{**group, "params": list(map(current_name, group["params"]))} for group in optimiser["param_groups"]]
    optimiser = {**optimiser, "state": rename(optimiser["state"]), "param_groups": groups}
    return {**state, "model": rename(state["model"]), "optimiser": optimiser}


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
