"""`segclip segment`: many photos in, three files each out; a bad photo stops no other."""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from segclip.data.photos import list_photos
from segclip.segment.background import check_background
from segclip.segment.encoder import DType
from segclip.segment.many_photos import segment_all
from segclip.segment.protocols import find_protocol
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import check_labels
from segclip.utils.failures import Failed

WRITTEN = ("{}.overlay.png", "{}.mask.png", "{}.json")  # of a photo, with its stem

log = logging.getLogger(__name__)
Failure = tuple[str, str]  # which photo, and why


def segment_files(
    photos: Sequence[Path],
    labels: Sequence[str],
    out: Path,
    model: str = "mini",
    device: str = "auto",
    protocol: str = "open",
    background: str = "auto",
    dtype: DType = "float32",
) -> int:
    """Segment photos and folders of photos into `out`; see `segclip segment --help`.

    Returns:
        0, 1 where some photos failed (named at the end), or 2 where all did.

    Raises:
        ValueError: labels, model, device, protocol, background or `out` that cannot be used.
    """
    if not photos:
        raise ValueError("no photo given; name photos or folders of photos, before --labels")
    check_labels(labels)
    wanted = check_background(background)
    find_protocol(protocol)
    files, failures = find_photos(photos)
    check_writable(out)
    done = 0
    if files:
        segmenter = Segmenter(model, protocol, device=device, dtype=dtype)
        with Progress(console=Console(stderr=True), disable=len(files) == 1, transient=True) as progress:
            named = list(zip(files, unused_stems(files, out), strict=True))
            results = segment_all(segmenter, named, labels, wanted, partial(_save, out))
            for path, result in progress.track(results, len(files)):
                if isinstance(result, Failed):
                    failures.append((result.item, result.reason))
                    continue
                done += 1
                if len(files) == 1:
                    Console().print(result_table(result, path))
    report(failures, done, out)
    return (1 if failures else 0) if done else 2


def find_photos(paths: Iterable[Path]) -> tuple[list[Path], list[Failure]]:
    """The photos named and those in the folders named, each once; and the folders that have none."""
    files: dict[Path, Path] = {}
    failures: list[Failure] = []
    for path in paths:
        try:
            for file in list_photos([path]):
                files.setdefault(file.resolve(), file)
        except (ValueError, OSError) as error:
            failures.append((str(path), str(error)))
    return list(files.values()), failures


def unused_stems(files: Sequence[Path], out: Path, written: Sequence[str] = WRITTEN) -> list[str]:
    """A stem for each photo's files: its own, or with -2, -3 ... where another has it or an input would be lost."""
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


def result_table(result: Segmentation, path: Path) -> Table:
    """What was found in a photo, for the terminal."""
    height, width = result.labels.shape
    table = Table("label", title=f"{escape(path.name)}, {width}x{height}", title_justify="left")
    for column in ("index", "area", "score"):
        table.add_column(column, justify="right")
    table.add_column("box")
    for found in result.found():
        box = "{}, {} to {}, {}".format(*found.box)
        table.add_row(escape(found.label), str(found.index), f"{found.share:.1%}", f"{found.score:.2f}", box)
    return table


def _save(out: Path, result: Segmentation, path: Path, stem: str) -> Segmentation | Failed:
    try:
        result.save(out, stem)
    except OSError as error:
        return Failed(str(path), f"cannot be written to {out}: {error.strerror or error}")
    return result


def report(failures: Sequence[Failure], done: int, out: Path) -> None:
    """Say how many photos were written, and which failed."""
    console = Console(stderr=True)
    if done:
        count = "1 photo" if done == 1 else f"{done} photos"
        console.print(f"{count} written to {out}", markup=False, highlight=False, soft_wrap=True)
    for name, why in failures:
        text = why if name in why else f"{name}: {why}"
        console.print(f"[bold red]failed:[/] {escape(' '.join(text.split()))}", highlight=False, soft_wrap=True)
