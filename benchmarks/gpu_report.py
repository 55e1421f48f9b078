"""What the steps of gpu.sh share: sizes, and a report that is written after each measurement."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from measuring import MATRIX

from segclip.checkpoints.loading import MINI as MINI_FILE
from segclip.config import BERT_VOCABULARY, ImageConfig, ModelConfig, TextConfig
from segclip.utils.files import atomic

Figures = dict[str, Any]

# The configuration of `mini`, for machines that do not have its weights.
MINI = ModelConfig(
    ImageConfig("dinov2", width=384, trunk_layers=12, region_layers=0, patch=14, side=224, position_grid=37),
    TextConfig("sentence", width=384, layers=6, heads=12, context=128, vocabulary=BERT_VOCABULARY, adapter=768),
    embed=384,
    centers=48,
    center_in_region=False,
)


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are.

    Attributes:
        device: cuda, or cpu for a test of the script.
        models: the paper's ViT-B/16 and the configuration of `mini`.
        batches: numbers of windows encoded at once.
        photos: how many the folder to segment has.
        photo: their height and width in pixels.
        checked: how many windows have their label maps compared with the CPU's.
        batch: pairs of a training step.
        micro_batches: sizes to try, the smallest first.
        compiled: sizes to try with torch.compile; if empty, nothing is compiled.
        compared: pairs in the training step that is compared with the CPU's.
        matrix: side of the matrices whose product measures the matrix rate.
        rounds: timed runs, after the warm-up.
    """

    device: str = "cuda"
    models: tuple[tuple[str, ModelConfig], ...] = (("vit-b16", ModelConfig()), ("mini", MINI))
    batches: tuple[int, ...] = (64, 256)
    photos: int = 200
    photo: tuple[int, int] = (480, 640)
    checked: int = 32
    batch: int = 768
    micro_batches: tuple[int, ...] = (128, 256, 384, 768)
    compiled: tuple[int, ...] = (384, 768)
    compared: int = 8
    matrix: int = MATRIX
    rounds: int = 10

    @property
    def paper(self) -> ModelConfig:
        """The paper's model."""
        return self.models[0][1]


SMALL = ModelConfig(
    ImageConfig("clip", width=64, trunk_layers=1, region_layers=1, patch=16, side=64, position_grid=4),
    TextConfig("sentence", width=64, layers=1, heads=1, context=32, vocabulary=BERT_VOCABULARY),
    embed=64,
    centers=4,
    decoder_layers=1,
)
FULL = Sizes()
TINY = Sizes(
    "cpu", (("small", SMALL),), (2,), 3, (64, 80), checked=2, batch=4, micro_batches=(2,), compiled=(), compared=2,
    matrix=64, rounds=1,
)  # fmt: skip


class Report:
    """Figures by name, written to a file after each measurement: if the program is killed, only the rest is lost.

    Args:
        file: JSON.
        until: Unix time at which all measurements must be done.
        only: patterns of the names that are measured, such as "*compiled"; if empty, all are.
    """

    def __init__(self, file: Path, until: float, only: Sequence[str] = ()) -> None:
        self.file, self.until, self.only = file, until, only
        self.figures: Figures = {"begun": time.strftime("%Y-%m-%d %H:%M"), "torch": torch.__version__}
        if torch.cuda.is_available():
            self.figures["device"] = torch.cuda.get_device_name()

    def wants(self, name: str) -> bool:
        return not self.only or any(fnmatchcase(name, pattern) for pattern in self.only)

    def measure(self, name: str, seconds: float, run: Callable[[], Figures]) -> Figures:
        """Run a measurement and record its figures or its error; skip it if fewer than `seconds` are left."""
        if not self.wants(name):
            return {}
        left, start = self.until - time.time(), time.perf_counter()
        found: Figures = {"skipped": f"{left:.0f} s left, about {seconds:.0f} s needed"}
        if left > seconds:
            try:
                found = run()
            except Exception as error:  # the other measurements still run
                lines = traceback.format_exc().splitlines()
                found = {"error": f"{type(error).__name__}: {error}"[:2000], "where": lines[-8:]}
            found["took"] = round(time.perf_counter() - start, 1)
        self.figures[name] = found
        with atomic(self.file) as temporary:
            temporary.write_text(json.dumps(self.figures, indent=1) + "\n", "utf-8")
        print(f"{self.file.stem}, {name}: {short(found)}", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found


def short(found: Figures) -> str:
    """The figures in one line, with four digits and without lists."""
    cells = []
    for name, value in found.items():
        if isinstance(value, float):
            cells.append(f"{name} {value:.4g}")
        elif isinstance(value, dict):
            cells.append(f"{name} ({short(value)})")
        elif not isinstance(value, list):
            cells.append(f"{name} {value}")
    return ", ".join(cells)


def has_mini() -> bool:
    """Whether the weights of `mini` are here."""
    return MINI_FILE.exists()
