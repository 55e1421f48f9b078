"""`segclip annotate`: a folder of photos -> the files that labelling tools and training code read; killed, it goes on.

Each photo's own files are written as it is done; the files about all photos are made from the lines that the store
keeps of them, at the end.
"""

import os
import re
from dataclasses import asdict, replace
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from segclip.annotate.annotator import Annotator, Drawing, Named, Request
from segclip.annotate.formats import FORMATS, write_all
from segclip.annotate.segments import Collection
from segclip.annotate.store import Store, photo_files
from segclip.checkpoints.loading import locate
from segclip.commands.segment import Failure, check_writable, report, unused_stems
from segclip.data.photos import list_photos
from segclip.segment.coco import pycocotools_mask
from segclip.segment.many_photos import BATCH
from segclip.segment.protocols import find_protocol
from segclip.text.labels import check_labels
from segclip.utils.failures import Failed
from segclip.utils.files import no_space
from segclip.utils.locks import only_one_run
from segclip.utils.ray import map_over_ray

# What XML or UTF-8 cannot hold, or would break lines.
UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
PHOTOS_AHEAD = 2**14  # that a cluster gets at once
NAME_REMEDY = "a file name that no annotation file can hold; rename the photo"


def annotate_folder(folder: Path, out: Path, request: Request, *, ray: bool = False) -> int:
    """Annotate the photos of a folder into `out`, on this machine or over Ray; see `segclip annotate --help`.

    Returns:
        0, 1 where some photos failed (named at the end), or 2 where all did.

    Raises:
        ValueError: a folder without photos, a request that cannot be met, or an `out` that was annotated otherwise.
    """
    request = replace(request, labels=check_labels(request.labels))
    for label in request.labels:
        if UNWRITABLE.search(label):
            raise ValueError(f"label {label!r} has characters that no annotation file can hold; leave them out")
    find_protocol(request.protocol)
    pycocotools_mask()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder of photos")
    files = list_photos([folder])
    check_writable(out)
    with locate(request.model).open("rb") as weights:
        digest = file_digest(weights, "sha256").hexdigest()
    job = _describe(request, digest, os.path.relpath(folder.resolve(), out.resolve()))
    with only_one_run(out), no_space(out):
        named = list(zip(files, unused_stems(files, out, photo_files()), strict=True))
        store = Store(out, job)
        failures = _annotate(request, store, store.start(named), len(files), ray)
        if store.offsets:
            info = {"description": _tell(request.drawing), **job}
            write_all(out, Collection(folder.resolve().name, request.labels, info, partial(store.photos, named)))
    report(failures, len(store.offsets), out)
    return (1 if failures else 0) if store.offsets else 2


def _annotate(request: Request, store: Store, named: Named, total: int, ray: bool) -> list[Failure]:
    """Annotate the photos that are still to do; those that failed."""
    failures = [(str(path), NAME_REMEDY) for path, _ in named if UNWRITABLE.search(path.name)]
    named = [(path, stem) for path, stem in named if not UNWRITABLE.search(path.name)]
    if not named:
        return failures
    if ray:
        make_annotator = partial(Annotator, request, dict(FORMATS))  # the formats that were added too
        gpus = request.device in ("auto", "cuda")
        results = map_over_ray(make_annotator, named, batch=BATCH, ahead=PHOTOS_AHEAD, gpus=gpus)
    else:
        results = Annotator(request)(named)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, completed=total - len(named))
        for path, result in results:
            if isinstance(result, Failed):
                failures.append((result.item, result.reason))
            else:
                store.add(path, result)
            progress.advance(task)
    return failures


def _describe(request: Request, digest: str, folder: str) -> dict[str, Any]:
    """What all photos have in common, as JSON has it; the folder's path starts from the output's."""
    return {
        "folder": folder,
        "labels": list(request.labels),
        "weights_sha256": digest,
        "protocol": request.protocol,
        "background": request.background,
        "dtype": request.dtype,
        **asdict(request.drawing),
    }


def _tell(drawing: Drawing) -> str:
    cleaned = f"pieces and holes under {drawing.clean:.4%} of a photo's area were given to their neighbours; "
    return (
        f"Pre-annotations by segclip annotate; {cleaned if drawing.clean else ''}one annotation per label and photo, "
        f"things of one kind are not told apart; polygons lie within {drawing.tolerance:g} px of the pixels' edges"
    )
