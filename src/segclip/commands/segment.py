"""`segclip segment`: many photos in, three files each out; a bad photo stops no other."""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from segclip.commands.options import HeadName, ProtocolName
from segclip.commands.photos import check_writable, find_photos, unused_stems
from segclip.commands.terminal import console, report
from segclip.segment.background import check_background
from segclip.segment.encoder import DType
from segclip.segment.many_photos import segment_all
from segclip.segment.presence import check_presence
from segclip.segment.protocols import find_protocol
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import check_labels, split_labels
from segclip.utils.failures import Failed
from segclip.visualize import LISTED

WRITTEN = ("{}.overlay.png", "{}.mask.png", "{}.json")  # for a photo, with its stem


def segment(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    /,
    labels: tuple[str, ...],
    out: Path,
    model: str = "mini",
    head: HeadName = None,
    device: str = "auto",
    protocol: ProtocolName = "open",
    background: str = "auto",
    presence: str = "auto",
    dtype: DType = "float32",
) -> int:
    """Find where in photos the things are that you name.

    Writes STEM.overlay.png (to look at), STEM.mask.png (pixel value = label index, 0 the background; 16-bit from 256
    labels on) and STEM.json (labels, areas, scores, boxes, what was not found) for each photo. Of photos with the same
    stem, the second becomes STEM-2, and so on.

    Args:
        photos: Photos, or folders of photos.
        labels: What to look for: --labels cat "potted plant", or --labels "cat, potted plant".
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
    """
    if not photos:
        raise ValueError("no photo given; name photos or folders of photos, before --labels")
    asked = check_labels(split_labels(labels))
    wanted = check_background(background), check_presence(presence)
    find_protocol(protocol)
    files, failures = find_photos(photos)
    check_writable(out)
    done = 0
    if files:
        segmenter = Segmenter(model, protocol, head=head, device=device, dtype=dtype)
        named = list(zip(files, unused_stems(files, out, WRITTEN), strict=True))
        results = segment_all(segmenter, named, asked, *wanted, partial(_save, out))
        with Progress(console=console, disable=len(files) == 1, transient=True) as progress:
            for path, result in progress.track(results, len(files)):
                if isinstance(result, Failed):
                    failures.append(result)
                    continue
                done += 1
                if len(files) == 1:
                    Console().print(_table(result, path))
    return report(done, failures, out)


def _save(out: Path, result: Segmentation, path: Path, stem: str) -> Segmentation | Failed:
    try:
        result.save(out, stem)
    except OSError as error:
        return Failed(str(path), f"cannot be written to {out}: {error.strerror or error}")
    return result


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
