"""The files of a run: each is whole or not there."""

import dataclasses
import json
import logging
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segclip.config import current_name
from segclip.train.config import TrainConfig
from segclip.utils.files import atomic, remove_unfinished, sync_folder
from segclip.utils.jsonl import decode_line

log = logging.getLogger(__name__)

RECIPE, METRICS, MODEL, BEST = "recipe.json", "metrics.jsonl", "model.safetensors", "best.safetensors"
CHECKPOINTS = "checkpoints"
FREE = ("workers", "save_every", "keep_checkpoints", "trackers", "compile")  # fields that may change when a run goes on


def read_recipe(run: Path) -> tuple[TrainConfig, str]:
    """The recipe of a run, and where its data is. Raises ValueError where there is none."""
    file = run / RECIPE
    try:
        found = json.loads(file.read_text("utf-8"))
        recipe, data = json.dumps(found["recipe"]), found["data"]
        if not isinstance(data, str):
            raise TypeError(f"data {data!r:.80}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: no recipe of a run ({error}); give the folder of a run") from error
    try:
        return TrainConfig.from_json(recipe), data
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


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


def load_tensors(file: Path) -> Any:
    """What `save_tensors` saved, on the CPU; nothing in it is executed. Raises ValueError where it is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # torch looks at no checksum
                raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # what is damaged makes the reader raise nearly anything
        raise ValueError(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from error


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Save the state after `step` steps and, once it is safe on the disk, delete all but the last `keep`.

    Where the disk is full, the run goes on with the checkpoints that it has, and the log says so.
    """
    folder = run / CHECKPOINTS
    try:
        folder.mkdir(exist_ok=True)
        remove_unfinished(folder)
        save_tensors({**state, "step": step}, folder / f"{step:08d}.pt")
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where a write fails
        log.error("no checkpoint at step %d: %s; the run goes on, the last one is kept. Free some space", step, error)
        return
    for old in list_checkpoints(run)[keep:]:
        old.unlink()


def list_checkpoints(run: Path) -> list[Path]:
    """The files of a run's states, the newest first, each called by its step."""
    files = [file for file in (run / CHECKPOINTS).glob("*.pt") if file.stem.isdecimal()]
    return sorted(files, key=lambda file: int(file.stem), reverse=True)


def read_checkpoint(file: Path, steps: int) -> dict[str, Any]:
    """The state in a file, on the CPU. Nothing in it is executed.

    Args:
        file: of a run.
        steps: of the whole run.

    Raises:
        ValueError: it is damaged, and how: cut, or with another checksum; without one of its parts; of another step
            than its name says; with a number that is not finite.
    """
    try:
        state = _with_current_names(load_tensors(file))
        step, counts = state["step"], state["counts"]
        if not 0 < step <= steps or step != int(file.stem):
            raise ValueError(f"it is of step {step}")
        if not all(math.isfinite(value) for value in counts.values()):
            raise ValueError("counts that are not finite")
        _check_tensors(state["model"], state["optimiser"]["state"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"parts are missing or of another kind: {error!s:.200}") from error
    return state


def _check_tensors(model: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> None:
    """Raise ValueError for a number that is not finite, or a moment that is missing or not of its parameter's shape."""
    if len({frozenset(own) for own in moments.values()}) > 1:
        raise ValueError("moments that not all parameters have")
    for name, tensor in model.items():
        own = moments.get(name, {}).values()
        if not all(one.isfinite().all() for one in (tensor, *own)):
            raise ValueError(f"{name} is not finite")
        if any(one.ndim and one.shape != tensor.shape for one in own):
            raise ValueError(f"{name} has moments of another shape")


def put_aside(file: Path) -> Path:
    """Rename a damaged checkpoint, so that it counts as one no more; its name now."""
    aside = file.with_name(f"{file.name}.damaged")
    os.replace(file, aside)
    return aside


def _with_current_names(state: dict[str, Any]) -> dict[str, Any]:
    """A state that 0.1 may have written, with the names that parameters have today."""

    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        return {current_name(name): value for name, value in tensors.items()}

    optimiser = state["optimiser"]
    groups = [{**group, "params": list(map(current_name, group["params"]))} for group in optimiser["param_groups"]]
    optimiser = {**optimiser, "state": rename(optimiser["state"]), "param_groups": groups}
    return {**state, "model": rename(state["model"]), "optimiser": optimiser}


def cut_metrics(file: Path, step: int) -> None:
    """Keep the lines of the steps up to `step`: a broken run took more after its checkpoint, or wrote half a line."""
    kept: dict[int, bytes] = {}
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
        number = (decode_line(line) or {}).get("step")
        if line.endswith(b"\n") and isinstance(number, int) and 0 < number <= step:
            kept[number] = line
    if missing := step - len(kept):
        log.warning("%s: %d of the lines of %d steps are missing or damaged; it goes on without", file, missing, step)
    with atomic(file) as temporary:
        temporary.write_bytes(b"".join(kept.values()))


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
