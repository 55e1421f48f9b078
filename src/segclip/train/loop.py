"""The training loop: steps, metrics, checkpoints; broken at any moment, it goes on as if nothing had been.

A run's folder: `recipe.json`, `metrics.jsonl` (a line a step), `checkpoints/`, `sheets/`, and at the end
`model.safetensors`; `best.safetensors` is the best by mIoU where there is a validation set.
"""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.tensor import DTensor

from segclip.checkpoints.native import save_model
from segclip.data.shards import Shards
from segclip.evaluate.datasets.folder import open_folder
from segclip.model.segclip import MAX_SCALE, Losses, Parts, SegCLIP
from segclip.train.config import TrainConfig
from segclip.train.distributed import (
    BLOCKS,
    full_state,
    gather_rows,
    restore_state,
    share_model,
    sum_over_processes,
    unsynced,
)
from segclip.train.optim import make_optimiser, set_learning_rate
from segclip.train.run_files import BEST, METRICS, MODEL, cut_metrics, last_checkpoint, save_checkpoint
from segclip.train.step import backward
from segclip.train.validation import fixed_photos, validate, write_sheet

try:
    import resource
except ImportError:  # Windows has none
    resource = None

MOST_SKIPPED = 10  # steps in a row without a finite loss, before the run stops


@runtime_checkable
class Batch(Protocol):
    """A process's share of a step's batch."""

    @property
    def bad(self) -> int:
        """Samples that could not be read and are left out."""
        ...

    def __len__(self) -> int: ...

    def split(self, size: int | None) -> "Sequence[Batch]": ...


@runtime_checkable
class Stream(Protocol):
    """Where a process's batches come from."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, number: int, start: int) -> "Iterator[Batch]":
        """The batches of an epoch, from step `start` on."""
        ...


class Stopped(Exception):
    """The run was asked to stop (SIGTERM), and has saved its state."""


@dataclass
class Counts:
    """What went wrong so far, and what went best.

    Attributes:
        bad: samples that could not be read.
        skipped: steps without a finite loss, whose gradients were thrown away.
        in_a_row: of these, the last ones in a row.
        best: mIoU.
    """

    bad: int = 0
    skipped: int = 0
    in_a_row: int = 0
    best: float = 0.0


class Run:
    """A run in its folder, over the processes that there are."""

    def __init__(
        self, config: TrainConfig, learner: nn.Module, model: SegCLIP, accelerator: Accelerator, out: Path
    ) -> None:
        self.config, self.model, self.accelerator, self.out = config, model, accelerator, out
        if config.checkpoint_activations:
            apply_activation_checkpointing(learner, check_fn=lambda module: isinstance(module, BLOCKS))
        self.learner = share_model(learner, accelerator, config.shard)
        self.optimiser = make_optimiser(model, config)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.counts, self.stopping, self.clock = Counts(), False, time.perf_counter()

    def train(self, stream: Stream, shards: Shards) -> Path:
        """Train from the last checkpoint to the end.

        Returns:
            The file of the trained model.

        Raises:
            FloatingPointError: ten steps in a row had no finite loss.
            Stopped: SIGTERM came; the state is saved.
        """
        steps = self.config.steps or self.config.epochs * stream.steps
        step = self._restore()
        look = self._prepare_look(shards)
        if self.accelerator.is_main_process:
            cut_metrics(self.out / METRICS, step)
        with self._shown(steps, step) as show, _on_sigterm(self._ask_to_stop):
            while step < steps:
                for batch in stream.epoch(step // stream.steps, step % stream.steps):
                    step += 1
                    record = self._step(batch, step, steps)
                    if step % self.config.validate_every == 0 or step == steps:
                        record |= look(step)
                    show(record)
                    if step % self.config.save_every == 0 or step == steps or self.stopping:
                        self._save(step)
                    if self.stopping:
                        raise Stopped(
                            f"stopped at step {step} of {steps}; go on with: segclip train --resume {self.out}"
                        )
                    if step == steps:
                        break
        whole = self._whole_model()
        if self.accelerator.is_main_process:
            save_model(whole, self.out / MODEL)
        return self.out / MODEL

    def _step(self, batch: Batch, step: int, steps: int) -> dict[str, Any]:
        self.learner.train()  # a look at the model leaves it in evaluation mode
        rate = set_learning_rate(self.optimiser, self.config, step, steps)
        losses = self._backward(batch)
        parts = [losses.superpixel.item(), losses.reconstruction.item(), float(batch.bad), float(self.stopping)]
        superpixel, reconstruction, bad, stopping = sum_over_processes(self.accelerator, parts)
        world = self.accelerator.num_processes
        superpixel, reconstruction, contrastive = superpixel / world, reconstruction / world, losses.contrastive.item()
        self.counts.bad += int(bad)
        self.stopping = stopping > 0
        total = contrastive * ("contrastive" in self.config.losses) + superpixel + reconstruction
        norm = self._update(total)
        return {
            "step": step,
            "loss": total,
            "contrastive": contrastive,
            "superpixel": superpixel,
            "reconstruction": reconstruction,
            "lr": rate,
            "gradient": norm,
            "samples_per_s": self.config.batch / self._seconds(),
            "bad_samples": self.counts.bad,
            "skipped_steps": self.counts.skipped,
        }

    def _backward(self, batch: Batch) -> Losses:
        world, bf16 = self.accelerator.num_processes, self.config.precision == "bf16"

        def encode(*pairs: Batch, **options: bool) -> Parts:
            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
                return self.learner(*pairs, **options)

        return backward(
            encode,
            batch.split(self.config.micro_batch),
            gather=gather_rows(self.accelerator, self.config.batch // world),
            world=world,
            soft_target_scale=self.config.soft_target_scale,
            contrast="contrastive" in self.config.losses,
            no_sync=unsynced(self.learner),
        )

    def _update(self, loss: float) -> float:
        """Take the optimiser's step, unless the loss or its gradient is not finite; gives the gradient's norm."""
        norm = nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimiser.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=math.log(MAX_SCALE))
            self.counts.in_a_row = 0
        else:
            self.counts.skipped += 1
            self.counts.in_a_row += 1
        self.optimiser.zero_grad(set_to_none=True)
        if self.counts.in_a_row == MOST_SKIPPED:
            raise FloatingPointError(
                f"{MOST_SKIPPED} steps in a row had no finite loss or gradient ({self.counts.skipped} in all; last: "
                f"loss {loss}, gradient {norm}); lower the learning rate, in a new folder"
            )
        return norm

    def _seconds(self) -> float:
        """Since this was last asked: a step, with the wait for its batch."""
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before

    def _ask_to_stop(self) -> None:
        self.stopping = True

    def _save(self, step: int) -> None:
        state = {**full_state(self.learner, self.optimiser), "counts": asdict(self.counts)}
        if self.accelerator.is_main_process:
            save_checkpoint(self.out, step, state, self.config.keep_checkpoints)

    def _restore(self) -> int:
        """Take up the last checkpoint; gives the steps that are done."""
        state = last_checkpoint(self.out)
        if state is None:
            return 0
        try:
            restore_state(self.learner, self.optimiser, state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{self.out}: holds a checkpoint of another model ({reason}); give another folder"
            ) from error
        self.counts = Counts(**state["counts"])
        return state["step"]

    def _whole_model(self) -> SegCLIP:
        """The model as one process has it; all processes must call this."""
        if not self.config.shard:
            return self.model
        state = full_state(self.learner, self.optimiser)["model"]
        whole = SegCLIP(self.model.config)
        if self.accelerator.is_main_process:
            whole.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        return whole

    def _prepare_look(self, shards: Shards) -> Callable[[int], dict[str, float]]:
        """What writes a sheet, and finds the mIoU where there is a validation set."""
        photos, captions = fixed_photos(shards, self.model.config.image.side)
        truth = open_folder(Path(self.config.validation)) if self.config.validation else None

        def look(step: int) -> dict[str, float]:
            whole = self._whole_model()
            if not self.accelerator.is_main_process:
                return {}
            whole.eval()
            (self.out / "sheets").mkdir(exist_ok=True)
            write_sheet(whole, photos, captions, self.out / "sheets" / f"{step:08d}.png")
            if truth is None:
                return {}
            miou = validate(whole, truth)
            if miou > self.counts.best:
                self.counts.best = miou
                save_model(whole, self.out / BEST)
            return {"miou": miou}

        return look

    @contextmanager
    def _shown(self, steps: int, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Metrics into their file, the trackers and a line in the terminal; only the first process has them."""
        if not self.accelerator.is_main_process:
            yield lambda record: None
            return
        columns = (MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with (
            (self.out / METRICS).open("a", encoding="utf-8") as lines,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            task = progress.add_task("", total=steps, completed=step)

            def show(record: dict[str, Any]) -> None:
                finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
                lines.write(json.dumps(finite) + "\n")
                lines.flush()
                self.accelerator.log(
                    {name: value for name, value in finite.items() if value is not None}, record["step"]
                )
                progress.update(task, completed=record["step"], description=_line(record))

            yield show


def _line(record: dict[str, Any]) -> str:
    parts = " ".join(f"{name} {record[name]:.3f}" for name in ("contrastive", "superpixel", "reconstruction"))
    seen = f" mIoU {record['miou']:.3f}" if "miou" in record else ""
    speed = f"{record['samples_per_s']:.0f} samples/s{_memory()}"
    return f"loss {record['loss']:.3f} ({parts}) lr {record['lr']:.1e}{seen} {speed}"


def _memory() -> str:
    """The most that was in use, where it is known."""
    if torch.cuda.is_available():
        return f" {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    if resource is None:
        return ""
    unit = 1e6 if sys.platform == "linux" else 1e9
    return f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GB"


@contextmanager
def _on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Answer SIGTERM by `act`; elsewhere than in the main thread, where Python allows no answer, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
