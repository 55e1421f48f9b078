"""COCO's instances, as run lengths (exact) or as polygons, one per connected component."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

from segclip.annotate.formats.format import Format, coco_images, write_object
from segclip.annotate.segments import Collection, PhotoSegments, Segment
from segclip.segment import coco


def write_coco(file: IO[str], found: Collection, outline: Callable[[PhotoSegments, Segment], object]) -> None:
    """One annotation per label and photo; `outline` gives its "segmentation"."""
    parts = {
        "images": coco_images(found),
        "annotations": _annotations(found, outline),
        "categories": coco.categories(found.names),
    }
    write_object(file, {"info": found.info}, parts)


def _annotations(found: Collection, outline: Callable[[PhotoSegments, Segment], object]) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, photo in enumerate(found.photos(), 1):
        for segment in photo.foreground():
            number += 1
            shape = outline(photo, segment)
            yield coco.annotation(number, image_id, segment.index, shape, segment.area, segment.box, segment.score)


def _run_lengths(photo: PhotoSegments, segment: Segment) -> object:
    return {"size": [photo.height, photo.width], "counts": segment.counts}


def _polygons(photo: PhotoSegments, segment: Segment) -> object:
    return segment.polygons


COCO = Format(files={"coco.json": partial(write_coco, outline=_run_lengths)})
COCO_POLYGONS = Format(files={"coco-polygons.json": partial(write_coco, outline=_polygons)})
