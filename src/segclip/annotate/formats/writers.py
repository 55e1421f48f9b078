"""The files of `segclip annotate`, as other tools read them; each streamed from photo to photo, so memory stays flat.

One annotation per label and photo: things of one kind are not told apart. Formats whose tools edit single polygons
(Label Studio, YOLO) get one per connected piece.
"""

import csv
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray

from segclip.segment import coco
from segclip.utils.files import atomic
from segclip.visualize import palette


@dataclass(frozen=True)
class Region:
    """What one label, or the background (index 0), covers in a photo.

    Attributes:
        index: its value in the label map.
        label: its name.
        area: in pixels.
        share: of the photo's area, 0-1.
        score: mean score of its pixels, 0-1.
        box: left, top, right, bottom in pixels; right and bottom are the first beyond it.
        counts: COCO's compressed run lengths; empty for the background.
        polygons: a list x, y, x, y ... in pixels for each connected piece; none for the background.
    """

    index: int
    label: str
    area: int
    share: float
    score: float
    box: tuple[int, int, int, int]
    counts: str
    polygons: list[list[float]]

    @property
    def doubt(self) -> float:
        """What its score lacks to 1."""
        return round(1 - self.score, 4)


@dataclass(frozen=True)
class PhotoRegions:
    """What was found in a photo.

    Attributes:
        photo: its file name.
        stem: of its own files: masks/STEM.png and others.
        width, height: of the upright photo, in pixels.
        regions: the largest first, the background among them.
    """

    photo: str
    stem: str
    width: int
    height: int
    regions: tuple[Region, ...]

    def named(self) -> list[Region]:
        """The regions without the background."""
        return [region for region in self.regions if region.index]

    def record(self) -> dict[str, Any]:
        """For JSON; `from_record` makes it whole again."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "PhotoRegions":
        """From what `record` gave."""
        regions = tuple(Region(**{**one, "box": tuple(one["box"])}) for one in record["regions"])
        return cls(**{**record, "regions": regions})


@dataclass(frozen=True)
class Collection:
    """All that was found, as often as one asks: a stream of photos, and what is common to them.

    Attributes:
        folder: the name of the photos' folder.
        names: the labels.
        info: what was done, for the files to say.
        photos: gives the photos from the first, in the order of their names.
    """

    folder: str
    names: tuple[str, ...]
    info: dict[str, Any]
    photos: Callable[[], Iterator[PhotoRegions]]


def write_all(out: Path, found: Collection) -> None:
    """Write the files that tell of all photos; each is whole, old or new, at every moment."""
    writers: dict[str, Callable[[IO[str], Collection], None]] = {
        "coco.json": lambda file, found: write_coco(file, found, polygons=False),
        "coco-polygons.json": lambda file, found: write_coco(file, found, polygons=True),
        "panoptic.json": write_panoptic,
        "cvat.xml": write_cvat,
        "cvat-labels.json": write_cvat_labels,
        "label-studio.json": write_label_studio,
        "label-studio.xml": write_label_studio_config,
        "yolo/data.yaml": write_yolo,
        "review.csv": write_review,
    }
    for name, write in writers.items():
        with atomic(out / name) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            write(file, found)


def write_coco(file: IO[str], found: Collection, *, polygons: bool) -> None:
    """COCO's instances, as run lengths (exact) or as polygons."""

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image_id, photo in enumerate(found.photos(), 1):
            for region in photo.named():
                number += 1
                rle = {"size": [photo.height, photo.width], "counts": region.counts}
                shape = region.polygons if polygons else rle
                yield coco.annotation(number, image_id, region.index, shape, region.area, region.box, region.score)

    parts = {"images": _images(found), "annotations": annotations(), "categories": coco.categories(found.names)}
    _write_object(file, {"info": found.info}, parts)


def write_panoptic(file: IO[str], found: Collection) -> None:
    """COCO's panoptic; the pixels are in panoptic/STEM.png: id = red + 256 green + 65536 blue; 0 the background."""

    def annotations() -> Iterator[dict[str, Any]]:
        for image_id, photo in enumerate(found.photos(), 1):
            shapes = [coco.annotation(r.index, image_id, r.index, None, r.area, r.box, r.score) for r in photo.named()]
            kept = [{k: v for k, v in shape.items() if k not in ("image_id", "segmentation")} for shape in shapes]
            yield {"image_id": image_id, "file_name": f"{photo.stem}.png", "segments_info": kept}

    kinds = [{**category, "isthing": 0} for category in coco.categories(found.names)]  # nothing is counted
    _write_object(
        file, {"info": found.info}, {"images": _images(found), "annotations": annotations(), "categories": kinds}
    )


def write_cvat(file: IO[str], found: Collection) -> None:
    """CVAT for images 1.1: a mask per label, exact."""
    file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><labels>\n')
    for name in found.names:
        file.write(f"<label><name>{escape(name)}</name><type>mask</type><attributes></attributes></label>\n")
    file.write("</labels></task></meta>\n")
    for number, photo in enumerate(found.photos()):
        size = f'width="{photo.width}" height="{photo.height}"'
        file.write(f'<image id="{number}" name={quoteattr(photo.photo)} {size}>\n')
        for region in photo.named():
            left, top, right, bottom = region.box
            mask = coco.decode_rle(region.counts, (photo.height, photo.width))[top:bottom, left:right]
            place = f'left="{left}" top="{top}" width="{right - left}" height="{bottom - top}"'
            runs = ", ".join(map(str, _row_runs(mask)))
            file.write(
                f'<mask label={quoteattr(region.label)} source="auto" occluded="0" rle="{runs}" {place} z_order="0">'
                "</mask>\n"
            )
        file.write("</image>\n")
    file.write("</annotations>\n")


def write_cvat_labels(file: IO[str], found: Collection) -> None:
    """The labels of a CVAT task, for its "Raw" field."""
    colours = palette(len(found.names) + 1)[1:]
    labels = [
        {"name": name, "color": _hex(colour), "type": "mask", "attributes": []}
        for name, colour in zip(found.names, colours, strict=True)
    ]
    file.write(json.dumps(labels, ensure_ascii=False, indent=1) + "\n")


def write_label_studio(file: IO[str], found: Collection) -> None:
    """Label Studio's tasks with predictions: a polygon per piece, in percent of the photo's sides."""

    def task(photo: PhotoRegions) -> dict[str, Any]:
        scale = 100 / np.array([photo.width, photo.height])
        common = {
            "from_name": "label",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": photo.width,
            "original_height": photo.height,
            "image_rotation": 0,
        }
        shapes = [(region, polygon) for region in photo.named() for polygon in region.polygons]
        result = [
            {
                "id": f"piece-{number}",
                **common,
                "value": {
                    "points": (np.reshape(polygon, (-1, 2)) * scale).round(5).tolist(),
                    "closed": True,
                    "polygonlabels": [region.label],
                },
                "score": region.score,
            }
            for number, (region, polygon) in enumerate(shapes, 1)
        ]
        score = min(region.score for region in photo.named() or photo.regions)  # Label Studio sorts photos by it
        place = quote(f"{found.folder}/{photo.photo}")
        prediction = {"model_version": "segclip", "score": score, "result": result}
        return {"data": {"image": f"/data/local-files/?d={place}"}, "predictions": [prediction]}

    _write_list(file, map(task, found.photos()))
    file.write("\n")


def write_label_studio_config(file: IO[str], found: Collection) -> None:
    """The labelling interface that these tasks need."""
    file.write('<View>\n  <Image name="image" value="$image" zoom="true"/>\n')
    file.write('  <PolygonLabels name="label" toName="image" opacity="0.4">\n')
    for name, colour in zip(found.names, palette(len(found.names) + 1)[1:], strict=True):
        file.write(f'    <Label value={quoteattr(name)} background="{_hex(colour)}"/>\n')
    file.write("  </PolygonLabels>\n</View>\n")


def yolo_lines(photo: PhotoRegions) -> str:
    """YOLO's text for a photo: a line per piece, its class (from 0) and the polygon's x, y in 0-1."""
    sides = np.array([photo.width, photo.height])
    lines = []
    for region in photo.named():
        for polygon in region.polygons:
            corners = (np.reshape(polygon, (-1, 2)) / sides).ravel()
            lines.append(f"{region.index - 1} " + " ".join(f"{value:.6g}" for value in corners) + "\n")
    return "".join(lines)


def write_yolo(file: IO[str], found: Collection) -> None:
    """YOLO's data.yaml; a JSON text is YAML as well."""
    file.write("# Pre-annotations by segclip. val is the same as train: split the photos yourself.\n")
    file.write("train: images\nval: images\nnames:\n")
    for number, name in enumerate(found.names):
        file.write(f"  {number}: {json.dumps(name, ensure_ascii=False)}\n")


def write_review(file: IO[str], found: Collection) -> None:
    """Every region, the most doubtful first; a photo where nothing was found has a line for its background."""
    doubts, places = array("d"), array("q")  # all that stays in memory: 16 bytes a region
    with TemporaryFile("w+", encoding="utf-8", newline="\n") as rows:
        lines = csv.writer(rows, lineterminator="\n")
        for photo in found.photos():
            for region in photo.named() or photo.regions:
                doubts.append(region.doubt)
                places.append(rows.tell())
                lines.writerow([photo.photo, region.label, region.doubt, region.score, region.share, *region.box])
        file.write("photo,label,doubt,score,share,left,top,right,bottom\n")
        for row in np.argsort(-np.array(doubts), kind="stable"):
            rows.seek(places[row])
            file.write(rows.readline())


def _images(found: Collection) -> Iterator[dict[str, Any]]:
    for number, photo in enumerate(found.photos(), 1):
        yield coco.image(number, photo.photo, (photo.height, photo.width))


def _write_object(file: IO[str], first: dict[str, Any], lists: dict[str, Iterable[Any]]) -> None:
    """A JSON object whose lists are streams."""
    file.write(_json(first)[:-1])
    for name, items in lists.items():
        file.write(f",\n{_json(name)}: ")
        _write_list(file, items)
    file.write("}\n")


def _write_list(file: IO[str], items: Iterable[Any]) -> None:
    file.write("[")
    for number, item in enumerate(items):
        file.write(("," if number else "") + "\n" + _json(item))
    file.write("]")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _row_runs(mask: Bool[ndarray, "h w"]) -> list[int]:
    """Lengths of the runs, row by row, the first one of pixels that are not in it: perhaps 0."""
    flat = np.concatenate([[False], mask.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    return np.diff(ends, prepend=0).tolist()


def _hex(colour: UInt8[ndarray, "3"]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
