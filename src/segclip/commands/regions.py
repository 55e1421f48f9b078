"""`segclip regions`: a sheet for each photo; a bad photo stops no other."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segclip.checkpoints.loading import load
from segclip.checkpoints.variants import vary
from segclip.commands.options import OUT, Out, gather_labels
from segclip.commands.photos import check_writable, find_photos, read_photo, unused_stems
from segclip.commands.terminal import be_quiet, photo_progress, report
from segclip.model.segclip import SegCLIP
from segclip.segment.regions import Layout, arrange, gather
from segclip.segment.sheets import WRITERS
from segclip.text.labels import Labels
from segclip.utils.failures import attempt
from segclip.utils.files import atomic

SHEET = "{}.regions."  # of a photo, with its stem, before the format


def regions(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    out: Out = OUT,
    labels: tuple[str, ...] = (),
    labels_file: Path | None = None,
    layout: Layout = "sheet",
    format: Literal["png", "svg", "pdf"] = "png",
    model: str = "mini",
    grouping: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    centers: int | None = None,
    device: str = "auto",
    recursive: bool = False,
    quiet: bool = False,
) -> int:
    """Draw what learnable centers or k-means gathered in photos, each seen whole, not in windows.

    Writes STEM.regions.png: two pictures for each center, the patches that went to it (hard), and the share it took of
    each patch (soft), bright where it took much. Centers that got no patch are left out.

    Args:
        photos: Photos, or folders of photos; - reads a photo from standard input, whose stem is stdin.
        out: Folder to write to; made if missing.
        labels: Name each region with the nearest of these, and its probability among them.
        labels_file: File with more of them, a label a line; # begins a comment.
        layout: sheet: two pictures for each center. row: one row for a paper, of the centers with the most patches.
        format: png; or svg or pdf, for papers, in which the titles stay text.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        grouping: k-means: clusters of each photo's own patches, of a plain CLIP or in place of mini's centers. refined:
            learned centers, then k-means of the photo. By default as the model has it, and k-means for a plain CLIP,
            whose regions are single patches.
        centers: How many clusters k-means makes; by default as many as the model's configuration says, 8 of a CLIP.
        device: auto, cpu, cuda, mps ...
        recursive: Look for photos in the folders' subfolders too.
        quiet: Print nothing but what failed.
    """
    be_quiet(quiet)
    if not photos:
        raise ValueError("no photo given; name photos or folders of photos, before --out")
    asked = gather_labels(labels, labels_file) if labels or labels_file else None
    files, failures = find_photos(photos, recursive=recursive)
    check_writable(out)
    done = 0
    if files:
        loaded = load(model, device)
        if grouping is None and loaded.config.head is not None and loaded.config.grouping == "patches":
            grouping = "k-means"  # two pictures a patch would be no sheet
        loaded = vary(loaded, grouping=grouping, centers=centers)
        name = SHEET + format
        named = list(zip(files, unused_stems(files, out, (name,)), strict=True))
        with photo_progress(alone=len(files) == 1) as progress:
            for path, stem in progress.track(named):
                failed = attempt(path, partial(_write_sheet, loaded, path, asked, layout, out / name.format(stem)))
                if failed:
                    failures.append(failed)
                else:
                    done += 1
    return report(done, failures, out)


def _write_sheet(model: SegCLIP, photo: Path, labels: Labels | None, layout: Layout, sheet: Path) -> None:
    arranged = arrange(gather(model, read_photo(photo), labels or ()), layout)
    with atomic(sheet) as temporary:
        temporary.write_bytes(WRITERS[sheet.suffix[1:]](arranged))
