"""What each photo of an evaluation gave: a line a photo in a file, from which a broken run goes on.

A line carries the stamp of the photo and of its truth, so that it counts only as long as they are the same. Every
process appends to a file of its own beside the result: NAME.photos.jsonl, NAME.photos-1.jsonl ... At the end the first
process makes one of them, sorted by photo.
"""

from collections.abc import Iterable, Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from segclip.evaluate.evaluator import PhotoCounts
from segclip.evaluate.metrics import Confusion
from segclip.utils.failures import Failed
from segclip.utils.files import atomic
from segclip.utils.jsonl import append_lines, encode_line, read_lines


class Records:
    """The lines of one evaluation.

    Args:
        result: the file of the result.
        job: what is evaluated, as JSON has it; lines of another job are refused.
        classes: how many there are.
        rank: of this process.
    """

    def __init__(self, result: Path, job: dict[str, Any], classes: int, rank: int) -> None:
        self.result, self.job, self.classes = result, job, classes
        self.main = result.with_name(f"{result.stem}.photos.jsonl")
        self.own = self.main if rank == 0 else result.with_name(f"{result.stem}.photos-{rank}.jsonl")

    def counted(self) -> dict[str, PhotoCounts]:
        """What photos gave that an earlier run counted, in any of its processes, by key.

        Raises:
            ValueError: the files are of another job.
        """
        lines = (line for file in self._files() for line in self._lines(file))
        return {counts.key: counts for line in lines if (counts := self._read_counts(line))}

    def start(self, kept: Iterable[PhotoCounts]) -> None:
        """Begin this process's file with what still holds; every process must have called `counted` before."""
        self._write({photo.key: _line(photo) for photo in kept}, self.own)

    def add(self, photos: Iterable[PhotoCounts]) -> None:
        """Write down what photos gave."""
        append_lines(self.own, map(_line, photos))

    def add_failed(self, failed: Iterable[Failed]) -> None:
        """Write down photos that were left out."""
        append_lines(self.own, ({"photo": one.item, "bad": one.reason} for one in failed))

    def merge(self, world: int) -> None:
        """Make one file of those of all processes of this run, and delete what an earlier one had more."""
        ranks = [self.result.with_name(f"{self.result.stem}.photos-{rank}.jsonl") for rank in range(1, world)]
        lines = (line for file in (self.main, *ranks) for line in self._lines(file))
        self._write({line["photo"]: line for line in lines}, self.main)  # a few thousand bytes a photo
        for file in self._files():
            if file != self.main:
                file.unlink()

    def photos(self) -> Iterator[PhotoCounts]:
        """Every photo's counts, sorted by key, after `merge`."""
        return (counts for line in self._lines(self.main) if (counts := self._read_counts(line)))

    def failed(self) -> list[Failed]:
        """The photos that were left out, after `merge`."""
        return [Failed(line["photo"], line["bad"]) for line in self._lines(self.main) if "bad" in line]

    def extremes(self, count: int) -> tuple[list[str], list[str]]:
        """The photos with the highest mIoU of their own, and with the lowest; half of all at most."""
        scores = []
        for photo in self.photos():
            own = Confusion(self.classes)
            own.add_counts(photo.found)
            scores.append((own.miou(), photo.key))
        keys = [key for _, key in sorted(scores)]
        count = min(count, len(keys) // 2)
        return keys[::-1][:count], keys[:count]

    def _files(self) -> list[Path]:
        others = self.result.parent.glob(f"{escape(self.result.stem)}.photos-*.jsonl")
        return [self.main, *sorted(file for file in others if file.stem.rpartition("-")[2].isdecimal())]

    def _lines(self, file: Path) -> Iterator[dict[str, Any]]:
        remedy = "give another --json FILE, or delete it"
        return (
            line for _, line in read_lines(file, self.job, "evaluation", remedy) if isinstance(line.get("photo"), str)
        )

    def _write(self, lines: Mapping[str, dict[str, Any]], file: Path) -> None:
        ordered = [{"job": self.job}, *(line for _, line in sorted(lines.items()))]
        with atomic(file) as temporary:
            temporary.write_bytes(b"".join(map(encode_line, ordered)))

    def _read_counts(self, line: dict[str, Any]) -> PhotoCounts | None:
        """What a line says that a photo gave; None where it says something else, or nothing that can be."""
        try:
            found, regions = (self._read_rows(line[name]) for name in ("found", "regions"))
            return PhotoCounts(line["photo"], str(line["stamp"]), found, regions)
        except (KeyError, TypeError, ValueError, OverflowError):  # damaged, of a former version, or of a bad photo
            return None

    def _read_rows(self, rows: list[list[int]]) -> Int64[ndarray, "_ 3"]:
        found = np.array(rows, np.int64).reshape(-1, 3)
        if found.size and (found.min() < 0 or found[:, :2].max() >= self.classes):
            raise ValueError("counts of classes that are not there")
        return found


def _line(photo: PhotoCounts) -> dict[str, Any]:
    counts = {"found": photo.found.tolist(), "regions": photo.regions.tolist()}
    return {"photo": photo.key, "stamp": photo.stamp, **counts}
