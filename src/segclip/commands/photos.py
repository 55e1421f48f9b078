"""Photos that commands are given, and the files that they write for each."""

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from segclip.data.own_png import is_own_png
from segclip.data.photos import PHOTO_SUFFIXES, list_photos
from segclip.utils.failures import Failed

NAME_BYTES = 255  # of a file's name, as most file systems have it

log = logging.getLogger(__name__)


def find_photos(paths: Iterable[Path]) -> tuple[list[Path], list[Failed]]:
    """The photos named and those in the folders named, each once; and the folders that have none.

    What this package wrote is left out, and said: a shell's `*.png` names it too.
    """
    files: dict[str, Path] = {}
    failures: list[Failed] = []
    for path in paths:
        if is_own_png(path):
            log.warning("%s: left out, written by segclip", path)
            continue
        try:
            for file in list_photos([path]):
                files.setdefault(_real(file), file)
        except (ValueError, OSError) as error:
            failures.append(Failed(str(path), str(error)))
    return list(files.values()), failures


def unused_stems(files: Sequence[Path], out: Path, written: Sequence[str]) -> list[str]:
    """A stem for each photo's files: its own, or with -2, -3 ... where another has it or an input would be lost.

    Where a name would be longer than a file system takes, the stem is cut.

    Args:
        files: the photos.
        out: folder that is written to.
        written: names of the files that are written for a photo, with {} for its stem.
    """
    inputs = {_real(file) for file in files}
    taken: set[str] = set()
    stems = []
    ends = [Path(name).name.format("") for name in written] + list(PHOTO_SUFFIXES)  # a link to the photo has its own
    for file in files:
        stem, number = _cut(file.stem, "", ends), 1
        if stem != file.stem:
            log.warning("%s: its name is too long to add to; its files are called %s", file, stem)
        while stem.casefold() in taken or any(_real(out / name.format(stem)) in inputs for name in written):
            number += 1
            stem = _cut(file.stem, f"-{number}", ends)
        if number > 1:
            log.warning("%s: another photo is called %s; its files are called %s", file, file.stem, stem)
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _cut(stem: str, number: str, ends: Sequence[str]) -> str:
    """The stem with its number, cut where a name that also has one of the ends would be too long."""
    room = NAME_BYTES - max(len(os.fsencode(number + end)) for end in ends)
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + number


def _real(file: Path) -> str:
    """The path without links; of a circle of links, or of a name that cannot be, as far as it goes."""
    return os.path.realpath(file)


def check_writable(out: Path) -> None:
    """Make the folder and see that a file can be made in it, before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror or error}); give another folder") from error
