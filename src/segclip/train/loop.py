"""What the training loop is made of: batches, a step, the state that it changes, and a way to stop it.

`segclip.train.run` puts them together.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.tensor import DTensor

from segclip.checkpoints.native import save_model
from segclip.config import PAPER_WEIGHTS
from segclip.model.segclip import MAX_SCALE, Losses, Parts, SegCLIP
from segclip.train.compilation import compile_blocks, eager_if
from segclip.train.config import TrainConfig
from segclip.train.distributed import BLOCKS, full_state, gather_rows, restore_state, share_model, unsynced
from segclip.train.metrics import Record
from segclip.train.optim import make_optimiser, set_learning_rate
from segclip.train.run_files import (
    BEST,
    CHECKPOINTS,
    list_checkpoints,
    put_aside,
    read_checkpoint,
    save_checkpoint,
)
from segclip.train.step import backward
from segclip.train.validation import Validation
from segclip.utils.processes import Processes

log = logging.getLogger(__name__)

MOST_SKIPPED = 10  # steps in a row without a finite loss, before the run stops
STEP_DRAWS = (1,)  # apart from the noise of `segclip.train.photo_batches`, which is seeded by seed and step too


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

    def initialize(self, model: SegCLIP) -> None:
        """Start the model's centers, and what else can be, from what is to be learned."""
        ...

    def learner(self, model: SegCLIP) -> nn.Module:
        """What makes the parts of the losses out of one of the batches."""
        ...


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


def batches(stream: Stream, done: int, steps: int) -> Iterator[tuple[int, Batch]]:
    """The steps from `done` + 1 to `steps`, each with its batch, over as many epochs as it takes."""
    while done < steps:
        for batch in stream.epoch(done // stream.steps, done % stream.steps):
            done += 1
            yield done, batch
            if done == steps:
                return


class Run:
    """The state of a run: model, optimiser, counts; over the processes that there are."""

    def __init__(
        self, config: TrainConfig, model: SegCLIP, learner: nn.Module, out: Path, processes: Processes
    ) -> None:
        self.config, self.model, self.out, self.processes = config, model, out, processes
        if config.compile:
            compile_blocks(learner)
        if config.checkpoint_activations:
            apply_activation_checkpointing(learner, check_fn=lambda module: isinstance(module, BLOCKS))
        self.learner = share_model(learner, processes, config.shard)
        self.optimiser = make_optimiser(model, config)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.counts, self.stopping, self.clock = Counts(), False, time.perf_counter()

    def step(self, batch: Batch, step: int, steps: int) -> Record:
        """Learn from a batch; what there is to tell of it.

        Raises:
            FloatingPointError: ten steps in a row had no finite loss.
        """
        self.learner.train()  # validation leaves it in evaluation mode
        seed_draws(self.config.seed, step, self.processes.rank)
        rate = set_learning_rate(self.optimiser, self.config, step, steps)
        fewer = len(batch) < self.config.batch // self.processes.world  # samples were bad
        with eager_if(self.config.compile and fewer):
            losses = self._backward(batch)
        names, world = list(losses.terms), self.processes.world
        parts = [*(losses.terms[name].item() for name in names), float(batch.bad), float(self.stopping)]
        *sums, bad, stopping = self.processes.sum(parts)
        terms = {name: total / world for name, total in zip(names, sums, strict=True)}
        self.counts.bad += int(bad)
        self.stopping = stopping > 0
        total = sum(self.config.losses[name] * term for name, term in terms.items())
        norm = self._update(total)
        return {
            "step": step,
            "loss": total,
            **dict.fromkeys(PAPER_WEIGHTS, 0.0),
            **terms,
            "lr": rate,
            "gradient": norm,
            "samples_per_s": self.config.batch / self._seconds(),
            "bad_samples": self.counts.bad,
            "skipped_steps": self.counts.skipped,
        }

    def _backward(self, batch: Batch) -> Losses:
        world, bf16 = self.processes.world, self.config.precision == "bf16"

        def encode(*pairs: Batch, **options: bool) -> Parts:
            with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=bf16):
                return self.learner(*pairs, **options)

        return backward(
            encode,
            batch.split(self.config.micro_batch),
            gather=gather_rows(self.processes, self.config.batch // world),
            world=world,
            weights=self.config.losses,
            settings=self.config.loss_settings,
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

    def validate(self, validation: Validation, step: int) -> Record:
        """Write a sheet, and where there is a validation set find the mIoU; all processes must call this.

        The best model by mIoU is kept.
        """
        model = self.whole_model()
        if not self.processes.is_main:
            return {}
        model.eval()
        with eager_if(self.config.compile):
            validation.write_sheet(model, step)
            miou = validation.miou(model)
        if miou is None:
            return {}
        if miou > self.counts.best:
            self.counts.best = miou
            save_model(model, self.out / BEST)
        return {"miou": miou}

    def whole_model(self) -> SegCLIP:
        """The model as one process has it, in the main process; all processes must call this."""
        if not self.config.shard:
            return self.model
        state = full_state(self.learner, self.optimiser)["model"]
        whole = SegCLIP(self.model.config)
        if self.processes.is_main:
            whole.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        return whole

    def save(self, step: int) -> None:
        """Write a checkpoint; all processes must call this."""
        state = {**full_state(self.learner, self.optimiser), "counts": asdict(self.counts)}
        if self.processes.is_main:
            save_checkpoint(self.out, step, state, self.config.keep_checkpoints)

    def restore(self, steps: int) -> int:
        """Take up the last whole checkpoint of a run of so many steps; gives the steps that are done.

        One that is damaged is named, and put aside when another is taken up; all processes must call this.

        Raises:
            ValueError: none is whole, or of this model.
        """
        damaged: dict[Path, str] = {}
        for file in list_checkpoints(self.out):
            try:
                state = self._take_up(file, steps)
            except ValueError as error:
                damaged[file] = str(error)
                continue
            self.processes.wait()  # until all have read
            for bad, why in damaged.items() if self.processes.is_main else ():
                log.warning("%s is damaged (%s), and now called %s", bad, why, put_aside(bad).name)
            if damaged:
                log.warning("the run goes on from %s", file)
            return state["step"]
        if damaged:
            reasons = "; ".join(f"{file.name}: {why}" for file, why in damaged.items())
            raise ValueError(
                f"{self.out}: none of its checkpoints can be gone on from ({reasons}); give another folder, or delete "
                f"its folder {CHECKPOINTS} to begin anew"
            )
        return 0

    def _take_up(self, file: Path, steps: int) -> dict[str, Any]:
        """Take up the state in a file. Raises ValueError, in every process, where one of them cannot."""
        state, why = None, "another process cannot read it"
        try:
            state = read_checkpoint(file, steps)
        except ValueError as error:
            why = str(error)
        if not all(self.processes.each(int(state is not None))) or state is None:
            raise ValueError(why)
        try:
            restore_state(self.learner, self.optimiser, state)
            self.counts = Counts(**state["counts"])
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason, *_ = str(error).split("\n")
            raise ValueError(f"a checkpoint of another model ({reason:.200})") from error
        return state

    def ask_to_stop(self) -> None:
        """Let all processes stop after the next step that they take together."""
        self.stopping = True


def seed_draws(seed: int, step: int, rank: int) -> None:
    """Seed what a module draws by itself, such as dropout: a resumed run draws what an unbroken one does."""
    (state,) = np.random.SeedSequence((seed, step, rank), spawn_key=STEP_DRAWS).generate_state(1, np.uint64)
    torch.manual_seed(int(state) >> 1)


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Answer SIGTERM by `act`; elsewhere than in the main thread, where Python allows no answer, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
