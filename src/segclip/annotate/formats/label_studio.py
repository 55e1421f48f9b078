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
    scale = 100 / np.array([photo.width, photo.height])
    common = {
        "from_name": "label",
        "to_name": "image",
        "type": "polygonlabels",
        "original_width": photo.width,
        "original_height": photo.height,
        "image_rotation": 0,
    }
    polygons = [(segment, polygon) for segment in photo.foreground() for polygon in segment.polygons]
    result = [
        {
            "id": f"piece-{number}",
            **common,
            "value": {
                "points": (np.reshape(polygon, (-1, 2)) * scale).round(5).tolist(),
                "closed": True,
                "polygonlabels": [segment.label],
            },
            "score": segment.score,
        }
        for number, (segment, polygon) in enumerate(polygons, 1)
    ]
    score = min(segment.score for segment in photo.foreground() or photo.segments)  # Label Studio sorts photos by it
    prediction = {"model_version": "segclip", "score": score, "result": result}
    # A folder's name of any bytes, as the file system has it.
    address = f"/data/local-files/?d={quote(os.fsencode(f'{folder}/{photo.photo}'))}"
    return {"data": {"image": address}, "predictions": [prediction]}


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
