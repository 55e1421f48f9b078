"""Commands that are killed at any moment (SIGKILL), and runs whose files are damaged: what they end with.

A command is killed several times, then let end: what it wrote must be, byte for byte, what it writes undisturbed. A
run whose newest files are damaged goes on, or says in one line which file is damaged.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from attacks.models import save_small
from attacks.mutate import mutate
from attacks.process import Fault, check_message

KILLS = 5  # of a command, before it is let end
SECONDS = 300.0  # that a command may take
TRAINING = ("--steps", "8", "--batch", "4", "--save-every", "2", "--validate-every", "100", "--workers", "0")


@dataclass(frozen=True)
class Job:
    """A command, and what it ends with.

    Attributes:
        start: its arguments, for a folder to write to.
        result: the bytes that count, of that folder.
        again: its arguments after it was broken off; None: the same.
    """

    start: Callable[[Path], list[str]]
    result: Callable[[Path], bytes]
    again: Callable[[Path], list[str]] | None = None


class Commands:
    """Commands over a few small files that it makes, and what each ends with undisturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder, photos, masks = folder, folder / "set" / "images", folder / "set" / "masks"
        for one in (photos, masks):
            one.mkdir(parents=True)
        generator = np.random.default_rng(0)
        lines = []
        for i in range(12):
            Image.fromarray(generator.integers(0, 256, (80, 96, 3), np.uint8)).save(photos / f"{i}.png")
            Image.fromarray(generator.integers(0, 2, (80, 96), np.uint8)).save(masks / f"{i}.png")
            lines.append(json.dumps({"image": f"{i}.png", "captions": [f"a cat number {i}"]}) + "\n")
        (photos / "pairs.jsonl").write_text("".join(lines))
        (folder / "set" / "classes.json").write_text('{"classes": {"0": "background", "1": "cat"}}')
        model = str(save_small(folder / "small.safetensors"))
        self.jobs = {
            "prepare": Job(
                lambda out: ["prepare", str(photos / "pairs.jsonl"), "--out", str(out), "--workers", "1"],
                lambda out: _bytes_of(out, "*.tar", "*.parquet"),
            ),
            "annotate": Job(
                lambda out: ["annotate", str(photos), "--labels", "cat", "--out", str(out), "--model", model],
                lambda out: _bytes_of(out, "coco.json", "masks/*.png"),
            ),
            "evaluate": Job(
                lambda out: [
                    *("evaluate", "folder", "--root", str(folder / "set"), "--model", model),
                    *("--json", str(out / "result.json")),
                ],
                lambda out: json.dumps({**json.loads((out / "result.json").read_text()), "versions": None}).encode(),
            ),
            "train": Job(
                lambda out: ["train", "debug", "--out", str(out), *TRAINING],
                lambda out: _bytes_of(out, "model.safetensors"),
                lambda out: ["train", "--resume", str(out)],
            ),
        }
        self.expected: dict[str, bytes] = {}
        self.seconds: dict[str, float] = {}
        for name, job in self.jobs.items():
            began = time.monotonic()
            self.end(name, out := folder / f"whole-{name}", job.start(out))
            self.seconds[name], self.expected[name] = time.monotonic() - began, job.result(out)

    def end(self, name: str, out: Path, arguments: list[str]) -> None:
        """Let a command end, and see that it did what it is for."""
        done = _start(arguments, out.parent / f"{out.name}.log").wait(SECONDS)
        if done:
            said = (out.parent / f"{out.name}.log").read_text(errors="replace")[-300:]
            raise Fault(f"{name} ended with {done}: {said}")

    def kill(self, name: str, generator: random.Random, number: int) -> None:
        """Kill a command some times, let it end, and compare. Raises Fault."""
        job, out = self.jobs[name], self.folder / f"{name}-{number}"
        for _ in range(KILLS):
            process = _start(self._arguments(job, out), out.parent / f"{out.name}.log")
            with suppress(subprocess.TimeoutExpired):
                process.wait(generator.uniform(0.1, 1.0) * self.seconds[name])
            process.kill()
            process.wait()
        self.end(name, out, self._arguments(job, out))
        if job.result(out) != self.expected[name]:
            raise Fault(f"{name}: after {KILLS} kills it wrote other bytes than undisturbed")
        shutil.rmtree(out)

    def damage(self, generator: random.Random, number: int) -> bool:
        """Damage the newest files of a run and resume it: whether it ended as it would have. Raises Fault."""
        run = shutil.copytree(self.folder / "whole-train", self.folder / f"damaged-{number}")
        files = [path for path in run.rglob("*") if path.is_file() and path.name != "model.safetensors"]
        (run / "model.safetensors").unlink(missing_ok=True)
        hit = generator.choice(files)
        hit.write_bytes(mutate(hit.read_bytes(), generator.choice(files).read_bytes(), generator))
        log = run.parent / f"{run.name}.log"
        code = _start(["train", "--resume", str(run)], log).wait(SECONDS)
        said = log.read_text(errors="replace")
        if code not in (0, 2) or "Traceback" in said:
            raise Fault(f"a run with damage in {hit.name} ended with {code}: {said[-300:]}")
        if code == 2:
            check_message(said.strip().splitlines()[-1], run)
        elif self.jobs["train"].result(run) != self.expected["train"]:
            raise Fault(f"a run with damage in {hit.name} went on to other weights, without a word: {said[-200:]}")
        shutil.rmtree(run)
        return code == 0

    def _arguments(self, job: Job, out: Path) -> list[str]:
        return job.again(out) if job.again and (out / "recipe.json").exists() else job.start(out)


def _start(arguments: list[str], log: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    with log.open("wb") as file:
        command = [sys.executable, "-m", "segclip", *arguments]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def _bytes_of(out: Path, *patterns: str) -> bytes:
    files = sorted(path for pattern in patterns for path in out.rglob(pattern))
    if not files:
        raise Fault(f"nothing of {', '.join(patterns)} was written")
    return b"".join(path.relative_to(out).as_posix().encode() + path.read_bytes() for path in files)
