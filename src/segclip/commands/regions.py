"""`segclip regions`: a sheet for each photo; a bad photo stops no other."""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import Progress

from segclip.checkpoints.loading import load
from segclip.commands.photos import check_writable, find_photos, unused_stems
from segclip.commands.terminal import console, report
from segclip.data.own_png import save_own_png
from segclip.data.photos import open_photo
from segclip.model.segclip import SegCLIP
from segclip.segment.regions import draw_sheet, gather
from segclip.text.labels import check_labels, split_labels
from segclip.utils.failures import attempt
from segclip.utils.files import atomic

SHEET = "{}.regions.png"  # of a photo, with its stem


def regions(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    out: Path,
    labels: tuple[str, ...] = (),
    model: str = "mini",
    device: str = "auto",
) -> int:
    """Draw what the learnable centers gathered in photos, each seen whole, not in windows.

    Writes STEM.regions.png: two pictures for each center, the patches that went to it (hard), and the share it took of
    each patch (soft), bright where it took much.

    Args:
        photos: Photos, or folders of photos.
        out: Folder to write to; made if missing.
        labels: Name each region with the nearest of these, and its probability among them.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        device: auto, cpu, cuda, mps ...
    """
    if not photos:
        raise ValueError("no photo given; name photos or folders of photos, before --out")
    if labels:
        labels = check_labels(split_labels(labels))
    files, failures = find_photos(photos)
    check_writable(out)
    done = 0
    if files:
        loaded = load(model, device)
        named = list(zip(files, unused_stems(files, out, (SHEET,)), strict=True))
        with Progress(console=console, disable=len(files) == 1, transient=True) as progress:
            for path, stem in progress.track(named):
                failed = attempt(path, partial(_write_sheet, loaded, path, labels, out / SHEET.format(stem)))
                if failed:
                    failures.append(failed)
                else:
                    done += 1
    return report(done, failures, out)


def _write_sheet(model: SegCLIP, photo: Path, labels: Sequence[str], sheet: Path) -> None:
    drawn = draw_sheet(gather(model, open_photo(photo), labels))
    with atomic(sheet) as temporary:
        save_own_png(drawn, temporary)
