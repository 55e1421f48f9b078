"""`segclip annotate`: a folder of photos -> the files that labelling tools and training code read; killed, it goes on.

Each photo's own files are written as it is done; the files about all photos are made from the lines that the store
keeps of them, at the end.
"""

import os
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from segclip.annotate.annotator import Annotator, Drawing, Named, Request
from segclip.annotate.formats import FORMATS, write_all
from segclip.annotate.preview import write_preview
from segclip.annotate.segments import Collection
from segclip.annotate.store import Store, photo_files, photo_folders
from segclip.checkpoints.loading import locate
from segclip.checkpoints.sharded import weights_sha256
from segclip.commands.options import HeadName, Out, ProtocolName, gather_labels
from segclip.commands.photos import check_writable, unused_stems
from segclip.commands.terminal import be_quiet, photo_progress, report
from segclip.data.photos import list_photos
from segclip.segment.background import check_background
from segclip.segment.coco import pycocotools_mask
from segclip.segment.encoder import DType
from segclip.segment.many_photos import BATCH
from segclip.segment.presence import check_presence
from segclip.segment.protocols import find_protocol
from segclip.utils.failures import Failed, attempt
from segclip.utils.files import no_space
from segclip.utils.locks import only_one_run
from segclip.utils.ray import map_over_ray

# What XML or UTF-8 cannot hold, or would break lines.
UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
OUT = Path("annotations")  # in the folder where the command is given
PHOTOS_AHEAD = 2**14  # that a cluster gets at once
NAME_REMEDY = "a file name that no annotation file can hold; rename the photo"


def annotate(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    /,
    drawing: Annotated[Drawing, tyro.conf.arg(name="")],
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
    ray: bool = False,
    quiet: bool = False,
) -> int:
    """Make annotations of a folder of photos, for people to correct: COCO, CVAT, Label Studio, YOLO, index PNGs.

    Writes OUT/coco.json, coco-polygons.json, panoptic.json, cvat.xml, label-studio.json, yolo/, masks/,
    preview.jpg (some of the photos, to look at) and review.csv, the most doubtful regions first. One annotation per
    label and photo: it does not count things. Killed at any moment, the same command goes on. docs/annotate.md tells
    how to import each file.

    Args:
        folder: Folder of photos.
        labels: What to look for: --labels cat "potted plant", or --labels "cat, potted plant".
        labels_file: File with more of them, a label a line; # begins a comment.
        out: Folder to write to; made if missing.
        drawing: Of the shapes.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        head: Of a plain CLIP: see segclip segment.
        device: auto, cpu, cuda, mps ...
        protocol: How to look: see segclip segment.
        background: auto, none, or a number in 0..1: see segclip segment.
        presence: auto or none: see segclip segment.
        dtype: Of the image tower's products: see segclip segment.
        ray: Do the work on a Ray cluster (pip install "segclip[scale]").
        quiet: Print nothing but what failed.
    """
    be_quiet(quiet)
    request = Request(
        labels=gather_labels(labels, labels_file),
        model=model,
        head=head,
        device=device,
        protocol=protocol,
        background=check_background(background),
        presence=check_presence(presence),
        dtype=dtype,
        drawing=drawing,
    )
    find_protocol(protocol)
    pycocotools_mask()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder of photos")
    _check_folder(folder, out)
    files = list_photos([folder])
    check_writable(out)
    job = _describe(request, weights_sha256(locate(model)), os.path.relpath(folder.resolve(), out.resolve()))
    with only_one_run(out), no_space(out):
        named = list(zip(files, unused_stems(files, out, photo_files()), strict=True))
        store = Store(out, job)
        failures = _annotate(request, store, store.start(named), len(files), ray)
        if store.offsets:
            info = {"description": _tell(drawing), **job, "folder": _readable(job["folder"])}
            found = Collection(folder.resolve().name, request.labels.names, info, partial(store.photos, named))
            write_all(out, found)
            write_preview(folder, out, found)
    return report(len(store.offsets), failures, out)


def _check_folder(folder: Path, out: Path) -> None:
    """Refuse to write over the photos: a link in the place of its own photo would lead nowhere."""
    if any(folder.samefile(written) for written in photo_folders(out) if written.exists()):
        raise ValueError(f"{folder}: --out {out} writes into this folder of photos itself; give another --out")


def _readable(path: str) -> str:
    """The path in UTF-8, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def _annotate(request: Request, store: Store, named: Named, total: int, ray: bool) -> list[Failed]:
    """Annotate the photos that are still to do; those that failed."""
    failures = [Failed(str(path), NAME_REMEDY) for path, _ in named if UNWRITABLE.search(path.name)]
    named = [(path, stem) for path, stem in named if not UNWRITABLE.search(path.name)]
    if not named:
        return failures
    if ray:
        make_annotator = partial(Annotator, request, dict(FORMATS))  # the formats that were added too
        gpus = request.device in ("auto", "cuda")
        results = map_over_ray(make_annotator, named, batch=BATCH, ahead=PHOTOS_AHEAD, gpus=gpus)
    else:
        results = Annotator(request)(named)
    with photo_progress(alone=False) as progress:
        task = progress.add_task("", total=total, completed=total - len(named))
        for path, result in results:
            if isinstance(result, Failed):
                failures.append(result)
            elif failed := attempt(path, partial(store.add, path, result), "its files cannot be written"):
                failures.append(failed)
            progress.advance(task)
    return failures


def _describe(request: Request, digest: str, folder: str) -> dict[str, Any]:
    """What all photos have in common, as JSON has it; the folder's path starts from the output's."""
    return {
        "folder": folder,
        "labels": request.labels.texts(),
        "weights_sha256": digest,
        "protocol": request.protocol,
        "background": request.background,
        "presence": request.presence,
        "dtype": request.dtype,
        **({} if request.head is None else {"head": request.head}),  # what was begun before has none
        **asdict(request.drawing),
    }


def _tell(drawing: Drawing) -> str:
    cleaned = f"pieces and holes under {drawing.clean:.4%} of a photo's area were given to their neighbours; "
    return (
        f"Pre-annotations by segclip annotate; {cleaned if drawing.clean else ''}one annotation per label and photo, "
        f"things of one kind are not told apart; polygons lie within {drawing.tolerance:g} px of the pixels' edges"
    )
