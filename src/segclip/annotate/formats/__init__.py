"""Annotation formats, one file each, as other tools read them.

One annotation per label and photo: things of one kind are not told apart. Formats whose tools edit single polygons
(Label Studio, YOLO) get one per connected component.
"""

from pathlib import Path

from segclip.annotate.formats.coco import COCO, COCO_POLYGONS
from segclip.annotate.formats.cvat import CVAT
from segclip.annotate.formats.format import Format
from segclip.annotate.formats.index_png import INDEX_PNG
from segclip.annotate.formats.label_studio import LABEL_STUDIO
from segclip.annotate.formats.panoptic import PANOPTIC
from segclip.annotate.formats.review import REVIEW
from segclip.annotate.formats.yolo import YOLO
from segclip.annotate.segments import Collection
from segclip.utils.files import atomic

FORMATS: dict[str, Format] = {
    "masks": INDEX_PNG,
    "coco": COCO,
    "coco-polygons": COCO_POLYGONS,
    "panoptic": PANOPTIC,
    "cvat": CVAT,
    "label-studio": LABEL_STUDIO,
    "yolo": YOLO,
    "review": REVIEW,
}


def write_all(out: Path, found: Collection) -> None:
    """Write every format's files about all photos; each is whole, old or new, at every moment."""
    for name, write in ((name, write) for one in FORMATS.values() for name, write in one.files.items()):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic(out / name) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            write(file, found)
