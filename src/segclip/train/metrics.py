"""What a run tells of itself: a line a step in metrics.jsonl, in its trackers and in the terminal."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segclip.losses import LOSSES
from segclip.train.run_files import METRICS, cut_metrics
from segclip.utils.optional import require
from segclip.utils.tables import choose

try:
    import resource
except ImportError:  # Windows has none
    resource = None

Record = dict[str, Any]  # of a step: its figures by name


@contextmanager
def tensorboard(run: Path, done: int) -> Iterator[Callable[[Record], None]]:
    """Files for `tensorboard --logdir RUN`; those of steps after `done`, which a broken run took, count no more."""
    module = require("torch.utils.tensorboard", extra="train")
    with module.SummaryWriter(str(run / "tensorboard"), purge_step=done + 1) as writer:

        def track(record: Record) -> None:
            for name, value in record.items():
                writer.add_scalar(name, value, record["step"])

        yield track


# Name -> (folder of a run, steps that are done) -> what takes each step's finite figures.
TRACKERS: dict[str, Callable[[Path, int], AbstractContextManager[Callable[[Record], None]]]] = {
    "tensorboard": tensorboard,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that is not in the table."""
    for name in names:
        choose(TRACKERS, name, "tracker")


@contextmanager
def record_metrics(run: Path, trackers: Sequence[str], steps: int, done: int) -> Iterator[Callable[[Record], None]]:
    """A function that takes each step's figures, from step `done` + 1 on."""
    cut_metrics(run / METRICS, done)
    columns = (MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with ExitStack() as stack:
        track = [stack.enter_context(TRACKERS[name](run, done)) for name in trackers]
        lines = stack.enter_context((run / METRICS).open("a", encoding="utf-8"))
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        task = progress.add_task("", total=steps, completed=done)

        def write(record: Record) -> None:
            finite = {name: value for name, value in record.items() if math.isfinite(value)}
            lines.write(json.dumps({name: finite.get(name) for name in record}) + "\n")
            lines.flush()
            for own in track:
                own(finite)
            progress.update(task, completed=record["step"], description=_line(record))

        yield write


def _line(record: Record) -> str:
    parts = " ".join(f"{name} {record[name]:.3f}" for name in LOSSES if name in record)
    miou = f" mIoU {record['miou']:.3f}" if "miou" in record else ""
    speed = f"{record['samples_per_s']:.0f} samples/s{_memory()}"
    return f"loss {record['loss']:.3f} ({parts}) lr {record['lr']:.1e}{miou} {speed}"


def _memory() -> str:
    """The most that was in use, where it is known."""
    if torch.cuda.is_available():
        return f" {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    if resource is None:
        return ""
    unit = 1e6 if sys.platform == "linux" else 1e9
    return f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GB"
