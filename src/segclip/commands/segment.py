"""`segclip segment`: many photos in, three files each out; a bad photo stops no other."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segclip.commands.options import OUT, HeadName, Out, ProtocolName, gather_labels
from segclip.commands.photos import check_writable, find_photos, read_photo, unused_stems
from segclip.commands.terminal import be_quiet, photo_progress, report
from segclip.segment.background import check_background
from segclip.segment.encoder import DType
from segclip.segment.many_photos import segment_all
from segclip.segment.presence import check_presence
from segclip.segment.protocols import find_protocol
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.utils.failures import Failed
from segclip.visualize import LISTED

NAME_WIDTH = 40  # most letters of a photo's name, in the line of a photo among many
WRITTEN = ("{}.overlay.png", "{}.mask.png", "{}.json")  # for a photo, with its stem
Saved = tuple[Segmentation, tuple[Path, ...]]  # a photo's result, and the files that were written of it
Show = Callable[[Path, Saved | Failed], None]


def segment(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    labels: tuple[str, ...] = (),
    labels_file: Path | None = None,
    out: Out = OUT,
    model: str = "mini",
    head: HeadName = None,
    device: str = "auto",
    protocol: ProtocolName = "open",
    background: str = "auto",
    presence: str = "auto",
    dtype: DType = "float32",
    recursive: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Find where in photos the things are that you name.

    Writes STEM.overlay.png (to look at), STEM.mask.png (pixel value = label index, 0 the background; 16-bit from 256
    labels on) and STEM.json (labels, areas, scores, boxes, what was not found) for each photo. Of photos with the same
    stem, the second becomes STEM-2, and so on. Prints a table, or of several photos a line each.

    Args:
        photos: Photos, or folders of photos; - reads a photo from standard input, whose stem is stdin.
        labels: What to look for: --labels cat "potted plant", or --labels "cat, potted plant".
        labels_file: File with more of them, a label a line; # begins a comment.
        out: Folder to write to; made if missing.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        head: How the patches of a plain CLIP say what they show; proxy asks mini's trunk which are alike.
        device: auto, cpu, cuda, mps ...
        protocol: open: for people. paper: the evaluation of arXiv 2211.14813, to the letter. groupvit: the same rules
            on larger photos and overlapping windows. dense: the evaluation of dense heads over a plain CLIP.
        background: auto: the protocol's own way. none: each pixel gets a label. A number in 0..1: where the best
            label's score is below it.
        presence: auto: open may find that a label is not in the photo. none: every label is taken to be in it, as paper
            and groupvit do.
        dtype: Of the image tower's products. bfloat16: faster where the processor multiplies such numbers; about one
            pixel of a hundred changes. int8: the same with a quarter of the memory for the trunk's weights.
        recursive: Look for photos in the folders' subfolders too.
        json: Print a line of JSON for each photo instead: its path, its files, and what STEM.json has; or the error.
        quiet: Print nothing but what failed, and the lines of --json.
    """
    be_quiet(quiet)
    if not photos:
        raise ValueError("no photo given; name photos or folders of photos, before --labels")
    asked = gather_labels(labels, labels_file)
    wanted = check_background(background), check_presence(presence)
    find_protocol(protocol)
    files, failures = find_photos(photos, recursive=recursive)
    check_writable(out)
    done = 0
    if files:
        segmenter = Segmenter(model, protocol, head=head, device=device, dtype=dtype)
        named = list(zip(files, unused_stems(files, out, WRITTEN), strict=True))
        results = segment_all(segmenter, named, asked, *wanted, partial(_save, out), read_photo)
        show = (
            _print_json if json else _print_nothing if quiet else _print_table if len(files) == 1 else _line_of(files)
        )
        with photo_progress(alone=len(files) == 1) as progress:
            for path, result in progress.track(results, len(files)):
                if isinstance(result, Failed):
                    failures.append(result)
                else:
                    done += 1
                if json or not isinstance(result, Failed):
                    show(path, result)
    return report(done, failures, out)


def _save(out: Path, result: Segmentation, path: Path, stem: str) -> Saved | Failed:
    try:
        return result, result.save(out, stem)
    except OSError as error:
        return Failed(str(path), f"cannot be written to {out}: {error.strerror or error}")


def _print_json(path: Path, result: Saved | Failed) -> None:
    """A line of JSON, also of a photo that failed."""
    told = {"photo": str(path)}
    if isinstance(result, Failed):
        print(json.dumps(told | {"error": result.reason}, ensure_ascii=False), flush=True)
    else:
        segmentation, files = result
        line = told | {"files": list(map(str, files))} | segmentation.record()
        print(json.dumps(line, ensure_ascii=False), flush=True)


def _print_nothing(path: Path, result: Saved | Failed) -> None:
    """For --quiet."""


def _print_table(path: Path, result: Saved | Failed) -> None:
    if not isinstance(result, Failed):
        Console().print(_table(result[0], path))


def _line_of(files: Sequence[Path]) -> Show:
    """What prints a line for each of several photos, below a title: its name, size, and what was found."""
    width = min(NAME_WIDTH, max(cell_len(file.name) for file in files))
    Console().print(f"{'photo':<{width}}  {'size':>11}  found", style="bold", highlight=False)

    def show(path: Path, result: Saved | Failed) -> None:
        if not isinstance(result, Failed):
            height, columns = result[0].labels.shape
            line = f"{set_cell_size(path.name, width)}  {f'{columns}x{height}':>11}  {result[0].summary()}"
            Console().print(line, markup=False, highlight=False, soft_wrap=True)

    return show


def _table(result: Segmentation, path: Path) -> Table:
    """What was found in a photo, and what was not."""
    height, width = result.labels.shape
    table = Table("label", title=f"{escape(path.name)}, {width}x{height}", title_justify="left")
    for column in ("area", "score", "presence", "index"):
        table.add_column(column, justify="right")
    table.add_column("box")
    presence = {name: f"{value:.2f}" for name, value in zip(result.names, result.presence, strict=True)}
    for found in result.found():
        box = "{}, {} to {}, {}".format(*found.box)
        own = presence.get(found.label, "")  # the background has none
        table.add_row(escape(found.label), f"{found.share:.1%}", f"{found.score:.2f}", own, str(found.index), box)
    missing = result.not_found()
    for label in missing[:LISTED]:
        table.add_row(escape(label), "not found", "", presence[label])
    if len(missing) > LISTED:
        table.add_row(f"and {len(missing) - LISTED} more", "not found")
    return table
