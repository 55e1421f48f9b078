"""What each photo of an evaluation gave: a line a photo in a file, from which a broken run goes on.

Every process appends to a file of its own beside the result: NAME.photos.jsonl, NAME.photos-1.jsonl ... At the end the
first process makes one of them, sorted by photo.
"""

import heapq
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from segclip.evaluate.evaluator import PhotoCounts
from segclip.evaluate.metrics import Confusion
from segclip.utils.files import atomic
from segclip.utils.jsonl import append_lines, encode_line, read_lines, start_lines


class CountFiles:
    """The lines of one evaluation.

    Args:
        result: the file of the result.
        job: what is evaluated, as JSON has it; lines of another job are refused.
        rank: of this process.
    """

    def __init__(self, result: Path, job: dict[str, Any], rank: int) -> None:
        self.result, self.job = result, job
        self.main = result.with_name(f"{result.stem}.photos.jsonl")
        self.own = self.main if rank == 0 else result.with_name(f"{result.stem}.photos-{rank}.jsonl")

    def start(self) -> set[str]:
        """Open this process's file; the photos that are known already, from any process.

        Raises:
            ValueError: the files are of another job.
        """
        known = {line["photo"] for file in self._files() for line in self._lines(file) if "bad" not in line}
        start_lines(self.own, self.job)
        return known

    def add(self, photos: Iterable[PhotoCounts]) -> None:
        """Write down what photos gave."""
        lines = ({"photo": p.key, "found": p.found.tolist(), "regions": p.regions.tolist()} for p in photos)
        append_lines(self.own, lines)

    def add_bad(self, bad: dict[str, str]) -> None:
        """Write down photos that were left out, and why."""
        append_lines(self.own, ({"photo": key, "bad": why} for key, why in bad.items()))

    def merge(self) -> None:
        """Make one file of all; of a photo with several lines, the last that is not bad, or the last."""
        files = self._files()
        places: dict[str, tuple[int, int]] = {}
        bad: dict[str, tuple[int, int]] = {}
        for number, file in enumerate(files):
            with file.open("rb") as lines:
                start = len(lines.readline())
                for text in lines:
                    if text.endswith(b"\n"):
                        line = json.loads(text)
                        (bad if "bad" in line else places)[line["photo"]] = (number, start)
                    start += len(text)

        with ExitStack() as stack:
            opened = [stack.enter_context(file.open("rb")) for file in files]
            out = stack.enter_context(stack.enter_context(atomic(self.main)).open("wb"))
            out.write(encode_line({"job": self.job}))
            for _, (number, start) in sorted((bad | places).items()):
                opened[number].seek(start)
                out.write(opened[number].readline())
        for file in files:
            if file != self.main:
                file.unlink()

    def photos(self) -> Iterator[PhotoCounts]:
        """Every photo's counts, sorted by key, after `merge`."""
        for line in self._lines(self.main):
            if "bad" not in line:
                found, regions = (np.array(line[name], np.int64).reshape(-1, 3) for name in ("found", "regions"))
                yield PhotoCounts(line["photo"], found, regions)

    def bad(self) -> dict[str, str]:
        """The photos that were left out, and why, after `merge`."""
        return {line["photo"]: line["bad"] for line in self._lines(self.main) if "bad" in line}

    def extremes(self, classes: int, count: int) -> tuple[list[str], list[str]]:
        """The photos with the highest mIoU of their own, and with the lowest; half of all at most."""

        def score(photo: PhotoCounts) -> tuple[float, str]:
            own = Confusion(classes)
            own.add_counts(photo.found)
            return own.miou(), photo.key

        total = sum(1 for _ in self.photos())
        count = min(count, total // 2)
        best, worst = (pick(count, map(score, self.photos())) for pick in (heapq.nlargest, heapq.nsmallest))
        return [key for _, key in best], [key for _, key in worst]

    def _files(self) -> list[Path]:
        return sorted(self.result.parent.glob(f"{escape(self.result.stem)}.photos*.jsonl"))

    def _lines(self, file: Path) -> Iterator[dict[str, Any]]:
        remedy = "give another --json FILE, or delete it"
        return (line for _, line in read_lines(file, self.job, "evaluation", remedy))
