"""`segclip annotate`: a folder of photos -> the files that labelling tools and training code read; killed, it goes on.

Each photo's own files are written, then its line in .progress.jsonl; the files about all photos are made from these
lines at the end. So memory is flat, and every file is whole at every moment.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from segclip.annotate.annotator import MASK, PANOPTIC, YOLO, Annotated, Annotator, Drawing, Named, Request
from segclip.annotate.formats.writers import Collection, PhotoRegions, write_all
from segclip.checkpoints.loading import locate
from segclip.commands.segment import Failure, check_writable, report, unused_stems
from segclip.data.photos import list_photos
from segclip.segment.coco import pycocotools_mask
from segclip.segment.many_photos import BATCH
from segclip.segment.protocols import find_protocol
from segclip.text.labels import check_labels
from segclip.utils.failures import Failed
from segclip.utils.files import atomic, no_space
from segclip.utils.jsonl import append_lines, read_lines, start_lines
from segclip.utils.locks import only_one_run
from segclip.utils.ray import map_over_ray

PROGRESS = ".progress.jsonl"
WRITTEN, LINK = (MASK, PANOPTIC, YOLO), "yolo/images/{}"
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
        named = list(zip(files, unused_stems(files, out, WRITTEN), strict=True))
        store = Store(out, job)
        failures = _annotate(request, store, store.start(named), len(files), ray)
        if store.places:
            info = {"description": _tell(request.drawing), **job}
            write_all(out, Collection(folder.resolve().name, request.labels, info, partial(store.photos, named)))
    report(failures, len(store.places), out)
    return (1 if failures else 0) if store.places else 2


def _annotate(request: Request, store: "Store", named: Named, total: int, ray: bool) -> list[Failure]:
    """Annotate the photos that are still to do; those that failed."""
    failures = [(str(path), NAME_REMEDY) for path, _ in named if UNWRITABLE.search(path.name)]
    named = [(path, stem) for path, stem in named if not UNWRITABLE.search(path.name)]
    if not named:
        return failures
    if ray:
        gpus = request.device in ("auto", "cuda")
        results = map_over_ray(partial(Annotator, request), named, batch=BATCH, ahead=PHOTOS_AHEAD, gpus=gpus)
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


class Store:
    """The output folder: what is done, and what is still to do.

    Args:
        out: the folder, which is this run's alone.
        job: what all photos have in common, as JSON has it.
    """

    def __init__(self, out: Path, job: dict[str, Any]) -> None:
        self.out, self.job = out, job
        self.file = out / PROGRESS
        self.places: dict[str, int] = {}  # of the line of each photo that is done
        self.stamps: dict[str, list[int]] = {}  # of each photo: has it changed?

    def start(self, named: Named) -> Named:
        """Go on with what is there, without what belongs to photos that are gone; the photos still to do.

        Raises:
            ValueError: `out` was annotated otherwise.
        """
        self.stamps = {path.name: _stamp(path) for path, _ in named}
        stems = {path.name: stem for path, stem in named}
        taken = set(stems.values())
        for place, line in read_lines(self.file, self.job, "annotation", "give another --out, or delete this file"):
            photo, stem = line["photo"], line["stem"]
            own = [self.out / name.format(stem) for name in WRITTEN]
            self.places.pop(photo, None)
            if stems.get(photo) != stem:
                for path in [*(own if stem not in taken else []), self.out / LINK.format(stem + Path(photo).suffix)]:
                    path.unlink(missing_ok=True)
            elif line["stamp"] == self.stamps[photo] and all(path.exists() for path in own):
                self.places[photo] = place
        for name in (*WRITTEN, LINK):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        start_lines(self.file, self.job)
        return [(path, stem) for path, stem in named if path.name not in self.places]

    def add(self, path: Path, annotated: Annotated) -> None:
        """Write a photo's own files, and then its line."""
        for name, data in annotated.files.items():
            with atomic(self.out / name) as file:
                file.write_bytes(data)
        _link(path, self.out / LINK.format(annotated.regions.stem + path.suffix))
        self.places[path.name] = self.file.stat().st_size
        append_lines(self.file, [{**annotated.regions.record(), "stamp": self.stamps[path.name]}])

    def photos(self, named: Named) -> Iterator[PhotoRegions]:
        """What is done, in the order of the photos."""
        with self.file.open("rb") as lines:
            for path, _ in named:
                if path.name in self.places:
                    lines.seek(self.places[path.name])
                    line = json.loads(lines.readline())
                    del line["stamp"]
                    yield PhotoRegions.from_record(line)


def _stamp(photo: Path) -> list[int]:
    """Size and time of the last change; nothing for a photo that cannot be found."""
    try:
        stat = photo.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _link(photo: Path, link: Path) -> None:
    """The photo where YOLO looks for it: a link, or a copy where links cannot be made."""
    with atomic(link) as file:
        file.unlink()
        try:
            file.symlink_to(os.path.relpath(photo.resolve(), link.parent.resolve()))
        except (OSError, ValueError):  # on Windows: links are not allowed, or lead to another drive
            shutil.copyfile(photo, file)
