"""A result as HTML: the photo under one layer per label, a table to hover over and tick, files to download.

Everything is inline, as data: URLs: nothing is written to the server's disk, and no script is needed.
Axes: H W pixels.
"""

import base64
import io
import json
from html import escape

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray
from PIL import Image

from segclip.data.photos import Photo
from segclip.segment.result import Found, Segmentation
from segclip.visualize import OPACITY, palette, widest_point

LONGEST = 1280  # long side shown, in pixels
NAMED = 0.03  # a label is named on the photo where it is at least this wide, in units of the photo's width


def photo_html(photo: Photo) -> str:
    """A photo before it is segmented."""
    height, width = photo.shape[:2]
    return (
        f'<div class="seg">{_stage(photo)}'
        f'<p class="seg-note">{width} × {height} pixels. Name what is in it, then press Segment.</p></div>'
    )


def message_html(text: str) -> str:
    """The page before there is anything to show."""
    return f'<div class="seg"><p class="seg-empty">{escape(text)}</p></div>'


def thumbnails_html(text: str, photos: dict[str, Photo]) -> str:
    """A text, and the CSS that shows a thumbnail of each photo on the button with its id."""
    rules = "".join(f"#examples #{name}{{background-image:url({_thumbnail(photo)})}}" for name, photo in photos.items())
    return f"<style>{rules}</style>{escape(text)}"


def _thumbnail(photo: Photo) -> str:
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    small = cv2.resize(photo[top : top + side, left : left + side], (64, 64), interpolation=cv2.INTER_AREA)
    return _url(Image.fromarray(small), "JPEG", quality=85)


def error_html(why: str) -> str:
    return f'<div class="seg"><p class="seg-error" role="alert">{escape(_sentence(why))}</p></div>'


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
    layers = "".join(_layer(small == f.index, f, colours[f.index]) for f in labels)
    rows = "".join(_row(f, colours[f.index]) for f in found)
    missing = [name for i, name in enumerate(result.names, 1) if i not in {f.index for f in labels}]
    absent = f'<p class="seg-note">Not found: {escape(", ".join(missing))}.</p>' if missing else ""
    height, width = result.labels.shape
    return (
        f'<div class="seg"><style>{_rules(labels)}</style>{_stage(result.photo, layers)}'
        f'<p class="seg-note">{width} × {height} pixels, {seconds:.1f} s. Hover over a label, or tap it, to see it '
        "alone; untick it to hide it.</p>"
        '<table class="seg-table"><thead><tr><th>label</th><th>share</th><th class="seg-number">score</th></tr></thead>'
        f'<tbody>{rows}</tbody></table>{absent}<div class="seg-files">{_files(result, stem, extra)}</div></div>'
    )


def _layer(inside: Bool[ndarray, "H W"], found: Found, colour: UInt8[ndarray, "3"]) -> str:
    """The label's colour where it is, a white outline, and its name where there is room."""
    thick = max(1, min(inside.shape) // 300)
    pixels = inside.astype(np.uint8)
    inner = cv2.erode(pixels, np.ones((2 * thick + 1, 2 * thick + 1), np.uint8), borderValue=1)
    image = Image.fromarray(2 * pixels - inner)  # 0 outside, 1 inside, 2 on the outline
    image.putpalette([0, 0, 0, *colour.tolist(), 255, 255, 255])
    url = _url(image, "PNG", transparency=bytes([0, round(255 * OPACITY), 230]))
    layer = f'<img class="seg-layer seg-on-{found.index}" alt="" src="{url}">'
    point = widest_point(inside)
    if point is None or point[2] < NAMED * inside.shape[1]:
        return layer
    left, top = 100 * point[0] / inside.shape[1], 100 * point[1] / inside.shape[0]
    name = escape(found.label)
    return f'{layer}<span class="seg-name seg-on-{found.index}" style="left:{left:.1f}%;top:{top:.1f}%">{name}</span>'


def _row(found: Found, colour: UInt8[ndarray, "3"]) -> str:
    red, green, blue = colour.tolist()
    swatch = f'<i style="background:rgb({red},{green},{blue})"></i>' if found.index else '<i class="seg-none"></i>'
    name = escape(found.label)
    tick = f'<input type="checkbox" checked aria-label="show {name}">' if found.index else ""
    share = 100 * found.share
    return (
        f'<tr class="seg-row-{found.index}"><td><label>{tick}{swatch}<span>{name}</span></label></td>'
        f'<td class="seg-share"><b style="width:{share:.1f}%"></b><span>{share:.1f}%</span></td>'
        f'<td class="seg-number">{found.score:.2f}</td></tr>'
    )


def _rules(labels: list[Found]) -> str:
    """Hovering over a row dims the other labels; unticking it hides its own."""
    return "".join(
        f".seg:has(.seg-row-{f.index}:hover) .seg-photo>:not(img:first-child):not(.seg-on-{f.index}){{opacity:.06}}"
        f".seg:has(.seg-row-{f.index} input:not(:checked)) .seg-on-{f.index}{{visibility:hidden}}"
        for f in labels
    )


def _files(result: Segmentation, stem: str, extra: dict[str, object]) -> str:
    record = {**result.record(), **extra}
    files = {
        f"{stem}.mask.png": ("Mask PNG", _url(result.index_image(), "PNG")),
        f"{stem}.json": ("JSON", _json_url(record)),
        f"{stem}.coco.json": ("COCO", _json_url(result.to_coco(stem))),
    }
    return "".join(f'<a download="{escape(name)}" href="{url}">{title}</a>' for name, (title, url) in files.items())


def _stage(photo: Photo, layers: str = "") -> str:
    height, width = photo.shape[:2]
    url = _url(Image.fromarray(_shrink(photo, cv2.INTER_AREA)), "JPEG", quality=90)
    return (
        f'<div class="seg-photo" style="--shape:{width / height:.4f}"><img alt="the photo" src="{url}">{layers}</div>'
    )


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
