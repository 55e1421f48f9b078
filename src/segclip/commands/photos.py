"""Photos that commands are given, and the files that they write for each."""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from segclip.data.photos import list_photos
from segclip.utils.failures import Failed

log = logging.getLogger(__name__)


def find_photos(paths: Iterable[Path]) -> tuple[list[Path], list[Failed]]:
    """The photos named and those in the folders named, each once; and the folders that have none."""
    files: dict[Path, Path] = {}
    failures: list[Failed] = []
    for path in paths:
        try:
            for file in list_photos([path]):
                files.setdefault(file.resolve(), file)
        except (ValueError, OSError) as error:
            failures.append(Failed(str(path), str(error)))
    return list(files.values()), failures


def unused_stems(files: Sequence[Path], out: Path, written: Sequence[str]) -> list[str]:
    """A stem for each photo's files: its own, or with -2, -3 ... where another has it or an input would be lost.

    Args:
        files: the photos.
        out: folder that is written to.
        written: names of the files that are written for a photo, with {} for its stem.
    """
    inputs = {file.resolve() for file in files}
    taken: set[str] = set()
    stems = []
    for file in files:
        stem, number = file.stem, 1
        while stem.casefold() in taken or any((out / name.format(stem)).resolve() in inputs for name in written):
            number += 1
            stem = f"{file.stem}-{number}"
        if number > 1:
            log.warning("%s: another photo is called %s; its files are called %s", file, file.stem, stem)
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def check_writable(out: Path) -> None:
    """Make the folder and see that a file can be made in it, before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror or error}); give another folder") from error
