"""`segclip compare`: one photo and the same labels, by several models, heads and protocols, on one sheet."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segclip.checkpoints.heads import change_head
from segclip.checkpoints.loading import load
from segclip.commands.photos import check_writable
from segclip.commands.terminal import complain, console, say
from segclip.data.own_png import save_own_png
from segclip.data.photos import open_photo
from segclip.model.dense import HEADS
from segclip.model.segclip import SegCLIP
from segclip.segment.background import Background, check_background
from segclip.segment.encoded import AnyPhoto
from segclip.segment.presence import Presence, check_presence
from segclip.segment.protocols import find_protocol
from segclip.segment.segmenter import Segmentation, Segmenter
from segclip.text.labels import Labels, check_labels, split_labels
from segclip.utils.failures import Failed, attempt
from segclip.utils.files import atomic
from segclip.utils.tables import choose
from segclip.visualize import Tile, draw_overlay, draw_tiles, scale_to_tile

SUFFIXES = (".png", ".jpg", ".jpeg")
QUALITY = 92  # of a JPEG
CORNER = 64  # pixels of a photo that is segmented first, so that no time has the labels' embedding in it


@dataclass(frozen=True)
class Way:
    """A model, its dense head if it has one, and a protocol."""

    model: str
    head: str | None
    protocol: str

    def __str__(self) -> str:
        return ", ".join(part for part in (self.model, self.head, self.protocol) if part)


@dataclass(frozen=True)
class Asked:
    """What every model is asked."""

    photo: AnyPhoto
    labels: Labels
    background: Background
    presence: Presence


Result = tuple[Segmentation, float]  # and the seconds it took


def compare(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    /,
    labels: tuple[str, ...],
    out: Path,
    models: tuple[str, ...] = ("mini",),
    heads: tuple[str, ...] = (),
    protocols: tuple[str, ...] = ("open",),
    background: str = "auto",
    presence: str = "auto",
    device: str = "auto",
) -> int:
    """Segment one photo by several models, dense heads and protocols, side by side on one sheet.

    Each picture has its time: of the photo alone, once the model is loaded and has embedded the labels. A model that
    cannot be used is named in its place, and stops no other.

    Args:
        photo: A photo.
        labels: What to look for: see segclip segment.
        out: File of the sheet, .png or .jpg.
        models: Each as --model of segclip segment takes it.
        heads: Of plain CLIPs, each by every one of these, such as naclip sclip; else by its own. A model with learned
            centers has none, and is shown once.
        protocols: Each by every one of these, such as open dense.
        background: auto, none, or a number in 0..1: see segclip segment.
        presence: auto or none: see segclip segment.
        device: auto, cpu, cuda, mps ...
    """
    names = check_labels(split_labels(labels))
    wanted = check_background(background), check_presence(presence)
    for head in heads:
        choose(HEADS, head, "head")
    for protocol in protocols:
        find_protocol(protocol)
    if not models or not protocols:
        raise ValueError("nothing to compare; give at least one of --models, and one of --protocols")
    _check_out(out, photo)
    asked = Asked(open_photo(photo), names, *wanted)
    tiles, failures = [Tile(photo.name, picture=Image.fromarray(asked.photo))], []
    table = Table("model", "head", "protocol", "seconds", "found", title=escape(photo.name), title_justify="left")
    for way, result in _run(asked, _once(models), _once(heads), _once(protocols), device):
        if isinstance(result, Failed):
            failures.append(result)
            tiles.append(Tile(str(way), f"failed: {result.reason}"))
            continue
        found, seconds = result
        tiles.append(Tile(str(way), f"{seconds:.2f} s", _draw(found)))
        there = [one.label for one in found.found() if one.index]
        row = (way.model, way.head or "", way.protocol, f"{seconds:.2f}", ", ".join(there) or "nothing")
        table.add_row(*map(escape, row))
    if table.row_count:
        _save(draw_tiles(tiles), out)
        Console().print(table)
        say(f"wrote {out}")
    for failed in failures:
        complain("failed", failed.reason)
    return (1 if failures else 0) if table.row_count else 2


def _check_out(out: Path, photo: Path) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out}: expected a file that ends in {', '.join(SUFFIXES)}; --out names that of the sheet")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; --out names the file of the sheet")
    if out.exists() and photo.exists() and out.samefile(photo):
        raise ValueError(f"{out}: is the photo itself, which would be lost; give --out another name")
    check_writable(out.parent)


def _once(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(given))


def _run(
    asked: Asked, models: Sequence[str], heads: Sequence[str], protocols: Sequence[str], device: str
) -> Iterator[tuple[Way | str, Result | Failed]]:
    """The result of each way, or why there is none; of a model that does not load, once."""
    for name in models:
        with console.status(f"loading {escape(name)}"):
            model = attempt(name, partial(load, name, device), "cannot be loaded")
        if isinstance(model, Failed):
            yield name, model
            continue
        own = heads if model.config.head is not None and heads else (model.config.head,)
        if heads and own == (None,):
            say(f"{name}: has learned centers, and no dense head; shown once")
        for head in own:
            for protocol in protocols:
                way = Way(name, head, protocol)
                with console.status(escape(str(way))):
                    result = attempt(str(way), partial(_segment, asked, model, way))
                yield way, result


def _segment(asked: Asked, model: SegCLIP, way: Way) -> Result:
    if way.head != model.config.head and way.head is not None:
        model = change_head(model, way.head)
    segmenter = Segmenter(model, way.protocol)
    given = {"background": asked.background, "presence": asked.presence}
    segmenter.segment(asked.photo[:CORNER, :CORNER], asked.labels, **given)
    start = time.perf_counter()
    found = segmenter.segment(asked.photo, asked.labels, **given)
    return found, time.perf_counter() - start


def _draw(result: Segmentation) -> Image.Image:
    found = [(one.index, one.label, one.share) for one in result.found()]
    absent = set(result.not_found())
    missing = [(i, name) for i, name in enumerate(result.names, start=1) if name in absent]
    return draw_overlay(*scale_to_tile(result.photo, result.labels), found, missing)


def _save(sheet: Image.Image, out: Path) -> None:
    with atomic(out) as temporary:
        if out.suffix.lower() == ".png":
            save_own_png(sheet, temporary)
        else:
            sheet.save(temporary, "JPEG", quality=QUALITY)
