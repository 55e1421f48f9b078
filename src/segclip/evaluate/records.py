"""What each photo of an evaluation gave: a line a photo in a file, from which a broken run goes on.

Every process appends to a file of its own beside the result: NAME.photos.jsonl, NAME.photos-1.jsonl ... At the end the
first process makes one of them, sorted by photo.
"""

from collections.abc import Iterable, Iterator
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from segclip.evaluate.evaluator import PhotoCounts
from segclip.evaluate.metrics import Confusion
from segclip.utils.failures import Failed
from segclip.utils.files import atomic
from segclip.utils.jsonl import append_lines, encode_line, read_lines, start_lines


class Records:
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
        """Open this process's file; the photos that are counted already, by any process.

        Raises:
            ValueError: the files are of another job.
        """
        counted = {line["photo"] for file in self._files() for line in self._lines(file) if "bad" not in line}
        start_lines(self.own, self.job)
        return counted

    def add(self, photos: Iterable[PhotoCounts]) -> None:
        """Write down what photos gave."""
        lines = ({"photo": p.key, "found": p.found.tolist(), "regions": p.regions.tolist()} for p in photos)
        append_lines(self.own, lines)

    def add_failed(self, failed: Iterable[Failed]) -> None:
        """Write down photos that were left out."""
        append_lines(self.own, ({"photo": one.item, "bad": one.reason} for one in failed))

    def merge(self) -> None:
        """Make one file of all; of a photo with several lines, the last with counts, or else the last."""
        files = self._files()
        counted: dict[str, bytes] = {}  # a few thousand bytes a photo
        failed: dict[str, bytes] = {}
        for file in files:
            for line in self._lines(file):
                (failed if "bad" in line else counted)[line["photo"]] = encode_line(line)
        lines = [encode_line({"job": self.job}), *(line for _, line in sorted((failed | counted).items()))]
        with atomic(self.main) as temporary:
            temporary.write_bytes(b"".join(lines))
        for file in files:
            if file != self.main:
                file.unlink()

    def photos(self) -> Iterator[PhotoCounts]:
        """Every photo's counts, sorted by key, after `merge`."""
        for line in self._lines(self.main):
            if "bad" not in line:
                found, regions = (np.array(line[name], np.int64).reshape(-1, 3) for name in ("found", "regions"))
                yield PhotoCounts(line["photo"], found, regions)

    def failed(self) -> list[Failed]:
        """The photos that were left out, after `merge`."""
        return [Failed(line["photo"], line["bad"]) for line in self._lines(self.main) if "bad" in line]

    def extremes(self, classes: int, count: int) -> tuple[list[str], list[str]]:
        """The photos with the highest mIoU of their own, and with the lowest; half of all at most."""
        scores = []
        for photo in self.photos():
            own = Confusion(classes)
            own.add_counts(photo.found)
            scores.append((own.miou(), photo.key))
        keys = [key for _, key in sorted(scores)]
        count = min(count, len(keys) // 2)
        return keys[::-1][:count], keys[:count]

    def _files(self) -> list[Path]:
        return sorted(self.result.parent.glob(f"{escape(self.result.stem)}.photos*.jsonl"))

    def _lines(self, file: Path) -> Iterator[dict[str, Any]]:
        remedy = "give another --json FILE, or delete it"
        return (line for _, line in read_lines(file, self.job, "evaluation", remedy))
