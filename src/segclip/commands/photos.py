"""Photos that commands are given, and the files that they write for each."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from segclip.data.own_pictures import is_own
from segclip.data.photos import PHOTO_SUFFIXES, Photo, PhotoError, decode_photo, is_photo_name, list_photos, open_photo
from segclip.utils.failures import Failed

STDIN = Path("-")  # a photo that comes on standard input
NAME_BYTES = 255  # of a file's name, as most file systems have it

log = logging.getLogger(__name__)


def find_photos(paths: Iterable[Path], *, recursive: bool = False) -> tuple[list[Path], list[Failed]]:
    """The photos named and those in the folders named, each once; and the folders that have none.

    With `recursive`, those of their subfolders too, hidden ones and links left out: a link may lead round in a circle.
    What this package wrote is left out, and said: a shell's `*.png` names it too.
    """
    files: dict[str, Path] = {}
    failures: list[Failed] = []
    for path in paths:
        if path == STDIN:
            files.setdefault(str(path), path)
            continue
        if is_own(path):
            log.warning("%s: left out, written by segclip", path)
            continue
        try:
            for file in _below(path) if recursive and path.is_dir() else list_photos([path]):
                files.setdefault(_real(file), file)
        except (ValueError, OSError) as error:
            failures.append(Failed(str(path), str(error)))
    return list(files.values()), failures


def _below(folder: Path) -> list[Path]:
    """The photos of a folder and of all folders below it. Raises ValueError where there is none."""
    photos: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(root, name) for name in sorted(names)]
        photos += [file for file in files if is_photo_name(file)]
    if not photos:
        raise ValueError(f"{folder}: no photos in this folder or below it; looked for {', '.join(PHOTO_SUFFIXES)}")
    return photos


def read_photo(path: Path) -> Photo:
    """The photo in a file, or for `-` the one on standard input. Raises PhotoError."""
    if path != STDIN:
        return open_photo(path)
    if sys.stdin is None or sys.stdin.isatty():
        raise PhotoError("standard input (-) is a terminal; give a photo: segclip segment - --labels cat < photo.jpg")
    return decode_photo(sys.stdin.buffer.read(), "standard input (-)")


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
        own = "stdin" if file == STDIN else file.stem
        stem, number = _cut(own, "", ends), 1
        if stem != own:
            log.warning("%s: its name is too long to add to; its files are called %s", file, stem)
        while stem.casefold() in taken or any(_real(out / name.format(stem)) in inputs for name in written):
            number += 1
            stem = _cut(own, f"-{number}", ends)
        if number > 1:
            log.warning("%s: another photo is called %s; its files are called %s", file, own, stem)
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
