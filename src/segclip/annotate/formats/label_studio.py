"""Label Studio: tasks whose predictions are polygons, one per connected component, and the labelling interface."""

import os
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import XMLGenerator

import numpy as np

from segclip.annotate.formats.format import Format, label_colours, write_list
from segclip.annotate.segments import Collection, PhotoSegments


def write_tasks(file: IO[str], found: Collection) -> None:
    """https://labelstud.io/guide/predictions: points in percent of the photo's sides."""
    write_list(file, (_task(photo, found.folder) for photo in found.photos()))
    file.write("\n")


def _task(photo: PhotoSegments, folder: str) -> dict[str, Any]:
    prediction = {
        "model_version": "segclip",
        "score": least_score(photo),
        "result": polygon_regions(photo, "label", "image"),
    }
    # A folder's name of any bytes, as the file system has it.
    address = f"/data/local-files/?d={quote(os.fsencode(f'{folder}/{photo.photo}'))}"
    return {"data": {"image": address}, "predictions": [prediction]}


def polygon_regions(photo: PhotoSegments, from_name: str, to_name: str) -> list[dict[str, Any]]:
    """The `result` of a prediction: a polygon for each connected component, points in percent of the photo's sides.

    Args:
        photo: what was found.
        from_name, to_name: of the labelling interface's labels, and its image.
    """
    scale = 100 / np.array([photo.width, photo.height])
    polygons = [(segment, polygon) for segment in photo.foreground() for polygon in segment.polygons]
    return [
        {
            "id": f"piece-{number}",
            **region_frame(photo, from_name, to_name, "polygonlabels"),
            "value": {
                "points": (np.reshape(polygon, (-1, 2)) * scale).round(5).tolist(),
                "closed": True,
                "polygonlabels": [segment.label],
            },
            "score": segment.score,
        }
        for number, (segment, polygon) in enumerate(polygons, 1)
    ]


def region_frame(photo: PhotoSegments, from_name: str, to_name: str, kind: str) -> dict[str, Any]:
    """What every region of a `result` has; `kind` is the type of its labels, such as "polygonlabels"."""
    return {
        "from_name": from_name,
        "to_name": to_name,
        "type": kind,
        "original_width": photo.width,
        "original_height": photo.height,
        "image_rotation": 0,
    }


def least_score(photo: PhotoSegments) -> float:
    """The lowest score of its segments, by which Label Studio sorts photos."""
    return min(segment.score for segment in photo.foreground() or photo.segments)


def write_interface(file: IO[str], found: Collection) -> None:
    """The labelling interface that these tasks need."""
    xml = XMLGenerator(file, "utf-8", short_empty_elements=True)  # type: ignore[arg-type]  # a text file will do

    def put(indent: str, element: str, **attributes: str) -> None:
        xml.ignorableWhitespace(f"\n{indent}")
        xml.startElement(element, attributes)  # type: ignore[arg-type]

    xml.startElement("View", {})  # type: ignore[arg-type]
    put("  ", "Image", name="image", value="$image", zoom="true")
    xml.endElement("Image")
    put("  ", "PolygonLabels", name="label", toName="image", opacity="0.4")
    for name, colour in zip(found.names, label_colours(found.names), strict=True):
        put("    ", "Label", value=name, background=colour)
        xml.endElement("Label")
    for indent, element in (("  ", "PolygonLabels"), ("", "View")):
        xml.ignorableWhitespace(f"\n{indent}")
        xml.endElement(element)
    xml.ignorableWhitespace("\n")


LABEL_STUDIO = Format(files={"label-studio.json": write_tasks, "label-studio.xml": write_interface})
