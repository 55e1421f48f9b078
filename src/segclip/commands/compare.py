"""`segclip compare`: one photo, several models, dense heads and protocols: a sheet; what fails stops no other."""

import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from segclip.checkpoints.loading import load
from segclip.commands.options import ProtocolName, gather_labels
from segclip.commands.photos import check_writable
from segclip.commands.terminal import complain, console, say
from segclip.data.own_pictures import save_own_jpeg, save_own_png
from segclip.data.photos import Photo, open_photo
from segclip.model.dense import HEADS
from segclip.model.segclip import SegCLIP
from segclip.segment.background import Background, check_background
from segclip.segment.presence import Presence, check_presence
from segclip.segment.protocols import find_protocol
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import Labels
from segclip.utils.failures import Failed, attempt
from segclip.utils.files import atomic
from segclip.utils.tables import choose
from segclip.visualize import draw_overlay, draw_side_by_side, scale_down

SUFFIXES = {".png": save_own_png, ".jpg": save_own_jpeg}
CORNER = 64  # pixels of the photo that are segmented first, so that no time has the labels' embedding in it
Way = tuple[str | None, str]  # a head, None for the model's own, and a protocol


def compare(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    /,
    labels: tuple[str, ...] = (),
    labels_file: Path | None = None,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("compare.png"),
    models: tuple[str, ...] = ("mini",),
    heads: tuple[str, ...] = (),
    protocols: tuple[ProtocolName, ...] = ("open",),
    background: str = "auto",
    presence: str = "auto",
    device: str = "auto",
) -> int:
    """Segment a photo with several models, dense heads or protocols, side by side on one sheet.

    Times are of one photo, its labels embedded before; loading the model is not in them.

    Args:
        photo: A photo.
        labels: What to look for: see segclip segment.
        labels_file: File with more of them, a label a line; # begins a comment.
        out: Sheet to write, .png or .jpg.
        models: Each as segclip segment takes it: mini, vit-b16, files of weights, Hugging Face hub ids.
        heads: Of plain CLIPs: each of these, such as naclip sclip; a model with learned centers has none, and is shown
            once.
        protocols: Each of these.
        background: auto, none, or a number in 0..1: see segclip segment.
        presence: auto or none: see segclip segment.
        device: auto, cpu, cuda, mps ...
    """
    asked = gather_labels(labels, labels_file)
    wanted = check_background(background), check_presence(presence)
    for protocol in protocols:
        find_protocol(protocol)
    for head in heads:
        choose(HEADS, head, "head")
    if not models or not protocols:
        raise ValueError("nothing to compare; give at least one of --models, and one of --protocols")
    _check_out(out, photo)
    opened = open_photo(photo)
    pictures: list[tuple[str, Image.Image | str]] = [("the photo", Image.fromarray(opened))]
    failures: list[Failed] = []
    table = Table("model", "head", "protocol", "seconds", "found")
    for name in track(list(dict.fromkeys(models)), console=console, transient=True):
        model = attempt(name, partial(load, name, device), "cannot be loaded")
        if isinstance(model, Failed):
            failures.append(model)
            pictures.append((name, model.reason))
            continue
        if heads and model.config.head is None:
            say(f"{name}: has learned centers, and no dense head; shown once")
        for head, protocol in _ways(model, heads, protocols):
            title = " ".join((name, *([head] if head else []), protocol))
            made = attempt(title, partial(_segment, model, head, protocol, opened, asked, *wanted))
            if isinstance(made, Failed):
                failures.append(made)
                pictures.append((title, made.reason))
                continue
            overlay, seconds, found = made
            pictures.append((f"{title}: {seconds:.2f} s", overlay))
            table.add_row(*map(escape, (name, head or "", protocol, f"{seconds:.2f}", found)))
    for failed in failures:
        complain("failed", failed.reason)
    if not table.rows:
        return 2
    with atomic(out) as temporary:
        SUFFIXES[out.suffix.lower()](draw_side_by_side(pictures), temporary)
    Console().print(table)
    say(f"wrote {out}")
    return 1 if failures else 0


def _ways(model: SegCLIP, heads: tuple[str, ...], protocols: tuple[str, ...]) -> Iterator[Way]:
    """Each head that the model can have, under each protocol."""
    own: tuple[str | None, ...] = (model.config.head,)
    asked = heads if heads and model.config.head else own
    return product(dict.fromkeys(asked), dict.fromkeys(protocols))


def _check_out(out: Path, photo: Path) -> None:
    """Raise ValueError, before any work is done, for a file that cannot be the sheet."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out}: expected a file that ends in {' or '.join(SUFFIXES)}; --out names that of the sheet")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; --out names the file of the sheet")
    if out.exists() and photo.exists() and out.samefile(photo):
        raise ValueError(f"{out}: is the photo itself, which would be lost; give --out another name")
    check_writable(out.parent)


def _segment(
    model: SegCLIP,
    head: str | None,
    protocol: str,
    photo: Photo,
    labels: Labels,
    background: Background,
    presence: Presence,
) -> tuple[Image.Image, float, str]:
    """The overlay, the seconds that it took, and what was found."""
    segmenter = Segmenter(model, protocol, head=head)
    segmenter.segment(photo[:CORNER, :CORNER], labels, background=background, presence=presence)
    start = time.perf_counter()
    result = segmenter.segment(photo, labels, background=background, presence=presence)
    seconds = time.perf_counter() - start
    found = [(one.index, one.label, one.share) for one in result.found()]
    missing = [(i, name) for i, name in enumerate(result.names, start=1) if not (result.labels == i).any()]
    overlay = draw_overlay(*scale_down(result.photo, result.labels), found, missing)
    return overlay, seconds, ", ".join(f"{label} {share:.0%}" for _, label, share in found)
