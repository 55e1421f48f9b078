"""The output folder of annotations: each photo's own files, then its line in .progress.jsonl, from which a run goes on.

So memory is flat, and every file is whole at every moment.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segclip.annotate.annotator import Annotated, Named
from segclip.annotate.formats import FORMATS
from segclip.annotate.segments import PhotoSegments
from segclip.utils.files import atomic
from segclip.utils.jsonl import append_lines, read_lines, start_lines

PROGRESS = ".progress.jsonl"


def photo_files() -> list[str]:
    """The names of the files of each photo, {} standing for its stem."""
    return [name for one in FORMATS.values() for name in one.photo_files]


def photo_folders(out: Path) -> list[Path]:
    """The folders below `out` that get files of each photo."""
    names = (*photo_files(), *(one.photo_link for one in FORMATS.values() if one.photo_link))
    return [folder for name in names if (folder := (out / name).parent) != out]


class Store:
    """The output folder: what is done, and what is still to do.

    Args:
        out: the folder, which is this run's alone.
        job: what all photos have in common, as JSON has it.
    """

    def __init__(self, out: Path, job: dict[str, Any]) -> None:
        self.out, self.job = out, job
        self.file = out / PROGRESS
        self.offsets: dict[str, int] = {}  # of the line of each photo that is done
        self.stamps: dict[str, list[int]] = {}  # of each photo: has it changed?

    def start(self, named: Named) -> Named:
        """Go on with what is there, without what belongs to photos that are gone; the photos still to do.

        Raises:
            ValueError: `out` was annotated otherwise.
        """
        self.stamps = {path.name: _stamp(path) for path, _ in named}
        stems = {path.name: stem for path, stem in named}
        taken = set(stems.values())
        for offset, line in read_lines(self.file, self.job, "annotation", "give another --out, or delete this file"):
            photo, stem = self._check_line(line)
            own = [self.out / name.format(stem) for name in photo_files()]
            copies = (one.photo_name(stem, Path(photo).suffix) for one in FORMATS.values())
            links = [self.out / name for name in copies if name]
            self.offsets.pop(photo, None)
            if stems.get(photo) != stem:
                for path in [*(own if stem not in taken else []), *links]:
                    path.unlink(missing_ok=True)
            elif line["stamp"] == self.stamps[photo] and all(path.exists() for path in own):
                self.offsets[photo] = offset
        for folder in photo_folders(self.out):
            folder.mkdir(parents=True, exist_ok=True)
        start_lines(self.file, self.job)
        return [(path, stem) for path, stem in named if path.name not in self.offsets]

    def _check_line(self, line: Any) -> tuple[str, str]:
        """The photo and the stem of a line: names of files, and never paths to what lies elsewhere."""
        try:
            names = (line["photo"], line["stem"])
            if all(Path(name).name == name != ".." for name in names) and line["stamp"] is not None:
                PhotoSegments.from_record({key: value for key, value in line.items() if key != "stamp"})
                return names
        except (TypeError, KeyError, ValueError, AttributeError):
            pass
        raise ValueError(f"{self.file}: a line is damaged ({str(line)[:60]}); delete this file to annotate anew")

    def add(self, path: Path, annotated: Annotated) -> None:
        """Write a photo's own files, and then its line."""
        for name, data in annotated.files.items():
            with atomic(self.out / name) as temporary:
                temporary.write_bytes(data)
        for one in FORMATS.values():
            if (name := one.photo_name(annotated.segments.stem, path.suffix)) and one.links(path.suffix):
                _link(path, self.out / name)
        start = self.file.stat().st_size
        append_lines(self.file, [{**annotated.segments.record(), "stamp": self.stamps[path.name]}])
        self.offsets[path.name] = start

    def photos(self, named: Named) -> Iterator[PhotoSegments]:
        """What is done, in the order of the photos."""
        with self.file.open("rb") as lines:
            for path, _ in named:
                if path.name in self.offsets:
                    lines.seek(self.offsets[path.name])
                    line = json.loads(lines.readline())
                    del line["stamp"]
                    yield PhotoSegments.from_record(line)


def _stamp(photo: Path) -> list[int]:
    """Size and time of the last change; nothing for a photo that cannot be found."""
    try:
        stat = photo.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _link(photo: Path, name: Path) -> None:
    """The photo where a format looks for it: a link, or a copy where links cannot be made."""
    with atomic(name) as temporary:
        temporary.unlink()
        try:
            temporary.symlink_to(os.path.relpath(photo.resolve(), name.parent.resolve()))
        except (OSError, ValueError):  # on Windows: links are not allowed, or lead to another drive
            shutil.copyfile(photo, temporary)
