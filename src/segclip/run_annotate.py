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

from segclip.annotate import MASK, PANOPTIC, YOLO, Annotated, Annotator, Named, Request
from segclip.annotate_cluster import map_over_ray
from segclip.annotation_formats import Collection, PhotoRegions, write_all
from segclip.checkpoints import locate
from segclip.coco import pycocotools_mask
from segclip.data.photos import list_photos
from segclip.files import claim, no_space, write_aside
from segclip.journal import append_lines, read_lines, start_lines
from segclip.labels import check_labels
from segclip.run_segment import Failure, check_writable, report, unused_stems

PROGRESS = ".progress.jsonl"
WRITTEN = (MASK, PANOPTIC, YOLO)
# What XML or UTF-8 cannot hold, or would break lines.
UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
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
    pycocotools_mask()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder of photos")
    files = list_photos([folder])
    check_writable(out)
    job = _describe(request)
    with claim(out), no_space(out):
        named = list(zip(files, unused_stems(files, out, WRITTEN), strict=True))
        store = Store(out, job)
        failures = _annotate(request, store, store.start(named), len(files), ray)
        if store.places:
            write_all(out, Collection(folder.resolve().name, request.labels, job, partial(store.photos, named)))
    report(failures, len(store.places), out)
    return (1 if failures else 0) if store.places else 2


def _annotate(request: Request, store: "Store", named: Named, total: int, ray: bool) -> list[Failure]:
    """Annotate the photos that are still to do; those that failed."""
    failures = [(str(path), NAME_REMEDY) for path, _ in named if UNWRITABLE.search(path.name)]
    named = [(path, stem) for path, stem in named if not UNWRITABLE.search(path.name)]
    if not named:
        return failures
    results = map_over_ray(request, named) if ray else Annotator(request)(named)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, completed=total - len(named))
        for path, result in results:
            if isinstance(result, str):
                failures.append((str(path), result))
            else:
                store.add(path, result)
            progress.advance(task)
    return failures


def _describe(request: Request) -> dict[str, Any]:
    """What all photos have in common, as JSON has it."""
    drawing = request.drawing
    cleaned = f"pieces and holes under {drawing.clean:.4%} of a photo's area were given to their neighbours; "
    with locate(request.model).open("rb") as weights:
        digest = file_digest(weights, "sha256").hexdigest()
    return {
        "description": f"Pre-annotations by segclip annotate; {cleaned if drawing.clean else ''}one annotation per "
        "label and photo, things of one kind are not told apart; "
        f"polygons lie within {drawing.tolerance:g} px of the pixels' edges",
        "labels": list(request.labels),
        "weights_sha256": digest,
        "protocol": request.protocol,
        "background": request.background,
        "dtype": request.dtype,
        **asdict(drawing),
    }


class Store:
    """The output folder: what is done, and what is still to do.

    Args:
        out: the folder, which is this run's alone.
        job: what all photos have in common, as JSON has it.
    """

    def __init__(self, out: Path, job: dict[str, Any]) -> None:
        self.out, self.job = out, job
        self.file = out / PROGRESS
        self.places: dict[str, int] = {}  # of each photo's line

    def start(self, named: Named) -> Named:
        """Go on with what is there; the photos that are still to do.

        Raises:
            ValueError: `out` was annotated otherwise.
        """
        stems = {path.name: stem for path, stem in named}
        remedy = "give another --out, or delete this file"
        for place, line in read_lines(self.file, self.job, "annotation", remedy):
            if stems.get(line["photo"]) == line["stem"]:
                self.places[line["photo"]] = place
        there = {path.name for path, stem in named if all((self.out / name.format(stem)).exists() for name in WRITTEN)}
        self.places = {photo: place for photo, place in self.places.items() if photo in there}
        for name in (*WRITTEN, "yolo/images/{}"):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        start_lines(self.file, self.job)
        return [(path, stem) for path, stem in named if path.name not in self.places]

    def add(self, path: Path, annotated: Annotated) -> None:
        """Write a photo's own files, and then its line."""
        for name, data in annotated.files.items():
            write_aside(self.out / name, lambda aside, data=data: aside.write_bytes(data))
        _link(path, self.out / f"yolo/images/{annotated.regions.stem}{path.suffix}")
        self.places[path.name] = self.file.stat().st_size
        append_lines(self.file, [annotated.regions.record()])

    def photos(self, named: Named) -> Iterator[PhotoRegions]:
        """What is done, in the order of the photos."""
        with self.file.open("rb") as lines:
            for path, _ in named:
                if path.name in self.places:
                    lines.seek(self.places[path.name])
                    yield PhotoRegions.from_record(json.loads(lines.readline()))


def _link(photo: Path, place: Path) -> None:
    """The photo where YOLO looks for it: a link, or a copy where links cannot be made."""

    def link(aside: Path) -> None:
        aside.unlink(missing_ok=True)
        try:
            aside.symlink_to(os.path.relpath(photo.resolve(), place.parent.resolve()))
        except OSError:
            shutil.copyfile(photo, aside)

    write_aside(place, link)
