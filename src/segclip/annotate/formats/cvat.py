"""CVAT for images 1.1: a mask per label, exact; and the labels of the task."""

import json
from typing import IO
from xml.sax.saxutils import XMLGenerator

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from segclip.annotate.formats.format import Format, label_colours
from segclip.annotate.segments import Collection, PhotoSegments, Segment
from segclip.segment import coco


def write_cvat(file: IO[str], found: Collection) -> None:
    """https://docs.cvat.ai/docs/manual/advanced/xml_format."""
    xml = XMLGenerator(file, "utf-8")  # type: ignore[arg-type]  # a text file will do
    xml.startDocument()
    _open(xml, "annotations")
    xml.ignorableWhitespace("\n")
    _text(xml, "version", "1.1")
    xml.ignorableWhitespace("\n")
    for name in ("meta", "task", "labels"):
        _open(xml, name)
    xml.ignorableWhitespace("\n")
    for name in found.names:
        _open(xml, "label")
        for element, text in {"name": name, "type": "mask", "attributes": ""}.items():
            _text(xml, element, text)
        _close(xml, "label")
    for name in ("labels", "task"):
        xml.endElement(name)
    _close(xml, "meta")
    for number, photo in enumerate(found.photos()):
        _write_photo(xml, number, photo)
    _close(xml, "annotations")


def _write_photo(xml: XMLGenerator, number: int, photo: PhotoSegments) -> None:
    _open(xml, "image", id=number, name=photo.photo, width=photo.width, height=photo.height)
    xml.ignorableWhitespace("\n")
    for segment in photo.foreground():
        _open(xml, "mask", **_mask(photo, segment))
        _close(xml, "mask")
    _close(xml, "image")


def _mask(photo: PhotoSegments, segment: Segment) -> dict[str, object]:
    """The attributes of a mask."""
    left, top, right, bottom = segment.box
    inside = coco.decode_rle(segment.counts, (photo.height, photo.width))[top:bottom, left:right]
    return {
        "label": segment.label,
        "source": "auto",
        "occluded": 0,
        "rle": ", ".join(map(str, row_runs(inside))),
        "left": left,
        "top": top,
        "width": right - left,
        "height": bottom - top,
        "z_order": 0,
    }


def row_runs(mask: Bool[ndarray, "h w"]) -> list[int]:
    """Lengths of the runs, row by row, the first one of pixels that are not in it: perhaps 0."""
    flat = np.concatenate([[False], mask.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    return np.diff(ends, prepend=0).tolist()


def _open(xml: XMLGenerator, element: str, **attributes: object) -> None:
    xml.startElement(element, {key: str(value) for key, value in attributes.items()})  # type: ignore[arg-type]


def _close(xml: XMLGenerator, element: str) -> None:
    xml.endElement(element)
    xml.ignorableWhitespace("\n")


def _text(xml: XMLGenerator, element: str, text: str) -> None:
    _open(xml, element)
    xml.characters(text)
    xml.endElement(element)


def write_labels(file: IO[str], found: Collection) -> None:
    """The labels of a CVAT task, for its "Raw" field."""
    labels = [
        {"name": name, "color": colour, "type": "mask", "attributes": []}
        for name, colour in zip(found.names, label_colours(found.names), strict=True)
    ]
    file.write(json.dumps(labels, ensure_ascii=False, indent=1) + "\n")


CVAT = Format(files={"cvat.xml": write_cvat, "cvat-labels.json": write_labels})
