"""A result as HTML: the photo under one layer per label, a table to hover over and tick, files to download.

Everything is inline, as data: URLs: nothing is written to the server's disk, and no script is needed.
Axes: H W pixels.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from jinja2 import Environment, FileSystemLoader
from numpy import ndarray
from PIL import Image

from segclip.data.photos import Photo
from segclip.segment.result import Found, Segmentation
from segclip.visualize import OPACITY, palette, widest_point

LONGEST = 1280  # long side shown, in pixels
NAMED = 0.03  # a label is named on the photo where it is at least this wide, in units of the photo's width
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
PARTS: Any = TEMPLATES.get_template("render.html").module  # its macros


@dataclass(frozen=True)
class Layer:
    """A label drawn over the photo.

    Attributes:
        index: the label's.
        url: of an image with the label's colour where it is, and a white outline.
        name: the label.
        point: where its name is written, in percent from the left and the top; None where there is no room.
    """

    index: int
    url: str
    name: str
    point: tuple[float, float] | None


@dataclass(frozen=True)
class File:
    """A file to download, and the text of its link."""

    name: str
    title: str
    url: str


def photo_html(photo: Photo) -> str:
    """A photo before it is segmented."""
    return str(PARTS.photo(**_stage(photo)))


def message_html(text: str) -> str:
    """The page before there is anything to show."""
    return str(PARTS.message(text))


def thumbnails_html(text: str, photos: dict[str, Photo]) -> str:
    """A text, and the CSS that shows a thumbnail of each photo on the button with its id."""
    return str(PARTS.thumbnails(text, {name: _thumbnail(photo) for name, photo in photos.items()}))


def _thumbnail(photo: Photo) -> str:
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    small = cv2.resize(photo[top : top + side, left : left + side], (64, 64), interpolation=cv2.INTER_AREA)
    return _url(Image.fromarray(small), "JPEG", quality=85)


def error_html(why: str) -> str:
    """Why something could not be done."""
    return str(PARTS.error(_sentence(why)))


def result_html(result: Segmentation, seconds: float, stem: str, extra: dict[str, object]) -> str:
    """A segmentation.

    Args:
        result: the segmentation.
        seconds: how long it took.
        stem: of the files to download.
        extra: fields of the JSON file besides the segmentation's record.
    """
    found = result.found()
    labels = [f for f in found if f.index]
    colours = palette(1 + len(result.names))
    small = _shrink(result.labels, cv2.INTER_NEAREST)
    return str(
        PARTS.result(
            **_stage(result.photo),
            seconds=seconds,
            layers=[_layer(small == f.index, f, colours[f.index]) for f in labels],
            labels=labels,
            found=found,
            colours=colours.tolist(),
            missing=result.not_found(),
            files=_files(result, stem, extra),
        )
    )


def _layer(inside: Bool[ndarray, "H W"], found: Found, colour: UInt8[ndarray, "3"]) -> Layer:
    thick = max(1, min(inside.shape) // 300)
    pixels = inside.astype(np.uint8)
    inner = cv2.erode(pixels, np.ones((2 * thick + 1, 2 * thick + 1), np.uint8), borderValue=1)
    image = Image.fromarray(2 * pixels - inner)  # 0 outside, 1 inside, 2 on the outline
    image.putpalette([0, 0, 0, *colour.tolist(), 255, 255, 255])
    url = _url(image, "PNG", transparency=bytes([0, round(255 * OPACITY), 230]))
    point = widest_point(inside)
    if point is None or point[2] < NAMED * inside.shape[1]:
        return Layer(found.index, url, found.label, None)
    return Layer(found.index, url, found.label, (100 * point[0] / inside.shape[1], 100 * point[1] / inside.shape[0]))


def _files(result: Segmentation, stem: str, extra: dict[str, object]) -> list[File]:
    return [
        File(f"{stem}.mask.png", "Mask PNG", _url(result.index_image(), "PNG")),
        File(f"{stem}.json", "JSON", _json_url({**result.record(), **extra})),
        File(f"{stem}.coco.json", "COCO", _json_url(result.to_coco(stem))),
    ]


def _stage(photo: Photo) -> dict[str, Any]:
    """The photo as it is shown, and its size."""
    height, width = photo.shape[:2]
    url = _url(Image.fromarray(_shrink(photo, cv2.INTER_AREA)), "JPEG", quality=90)
    return {"shape": width / height, "url": url, "width": width, "height": height}


def _shrink(image: ndarray, interpolation: int) -> ndarray:
    height, width = image.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return image
    return cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=interpolation)


def _url(image: Image.Image, form: str, **options: object) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _json_url(record: object) -> str:
    text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    return f"data:application/json;base64,{base64.b64encode(text.encode()).decode()}"


def _sentence(why: str) -> str:
    why = " ".join(why.split())
    if "." not in why.split(" ")[0]:  # a file name is not capitalised
        why = why[:1].upper() + why[1:]
    return why if why.endswith(".") else f"{why}."
