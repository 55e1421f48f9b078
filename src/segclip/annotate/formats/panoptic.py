"""COCO's panoptic; the pixels are in panoptic/STEM.png: id = red + 256 green + 65536 blue; 0 the background."""

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import Image

from segclip.annotate.formats.format import Format, coco_images, encode_png, write_object
from segclip.annotate.segments import Collection, PhotoSegments
from segclip.segment import coco
from segclip.segment.result import Segmentation


def write_panoptic(file: IO[str], found: Collection) -> None:
    """All categories are "stuff": nothing is counted."""
    categories = [{**category, "isthing": 0} for category in coco.categories(found.names)]
    parts = {"images": coco_images(found), "annotations": _annotations(found), "categories": categories}
    write_object(file, {"info": found.info}, parts)


def _annotations(found: Collection) -> Iterator[dict[str, Any]]:
    for image_id, photo in enumerate(found.photos(), 1):
        infos = [
            coco.annotation(one.index, image_id, one.index, None, one.area, one.box, one.score)
            for one in photo.foreground()
        ]
        kept = [
            {key: value for key, value in info.items() if key not in ("image_id", "segmentation")} for info in infos
        ]
        yield {"image_id": image_id, "file_name": f"{photo.stem}.png", "segments_info": kept}


def make_png(result: Segmentation, photo: PhotoSegments) -> bytes:
    """The label's index in three colours, so that any number of labels has room."""
    labels = result.labels
    colours = np.stack([labels % 256, labels // 256 % 256, labels // 65536], axis=-1).astype(np.uint8)
    return encode_png(Image.fromarray(colours))


PANOPTIC = Format(files={"panoptic.json": write_panoptic}, photo_files={"panoptic/{}.png": make_png})
