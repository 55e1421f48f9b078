"""YOLO: a text for each photo, with a line per connected component; data.yaml; links to the photos."""

import json
from typing import IO

import numpy as np

from segclip.annotate.formats.format import Format
from segclip.annotate.segments import Collection, PhotoSegments
from segclip.segment.result import Segmentation


def make_lines(result: Segmentation, photo: PhotoSegments) -> bytes:
    """A polygon a line: its class (from 0) and its x, y in 0-1."""
    sides = np.array([photo.width, photo.height])
    lines = []
    for segment in photo.foreground():
        for polygon in segment.polygons:
            corners = (np.reshape(polygon, (-1, 2)) / sides).ravel()
            lines.append(f"{segment.index - 1} " + " ".join(f"{value:.6g}" for value in corners) + "\n")
    return "".join(lines).encode()


def write_yaml(file: IO[str], found: Collection) -> None:
    """data.yaml; a JSON text is YAML as well."""
    file.write("# Pre-annotations by segclip. val is the same as train: split the photos yourself.\n")
    file.write("train: images\nval: images\nnames:\n")
    for number, name in enumerate(found.names):
        file.write(f"  {number}: {json.dumps(name, ensure_ascii=False)}\n")


YOLO = Format(
    files={"yolo/data.yaml": write_yaml},
    photo_files={"yolo/labels/{}.txt": make_lines},
    photo_link="yolo/images/{}",
)
