"""YOLO: a text for each photo, with a line per connected component; data.yaml; links to the photos."""

import json
import re
from typing import IO

import numpy as np

from segclip.annotate.formats.format import Format
from segclip.annotate.segments import Collection, PhotoSegments
from segclip.segment.result import Segmentation

# Of the photos that Ultralytics (IMG_FORMATS) and supervision read, both in all versions.
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What YAML does not have as it is, or takes for a line's end, unlike JSON.
UNREADABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


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
    """data.yaml; a JSON text is YAML as well, but for some letters, which either has by their number."""
    file.write("# Pre-annotations by segclip. val is the same as train: split the photos yourself.\n")
    file.write("train: images\nval: images\nnames:\n")
    for number, name in enumerate(found.names):
        text = UNREADABLE.sub(lambda letter: f"\\u{ord(letter[0]):04x}", json.dumps(name, ensure_ascii=False))
        file.write(f"  {number}: {text}\n")


YOLO = Format(
    files={"yolo/data.yaml": write_yaml},
    photo_files={"yolo/labels/{}.txt": make_lines},
    photo_link="yolo/images/{}",
    link_suffixes=SUFFIXES,
)
