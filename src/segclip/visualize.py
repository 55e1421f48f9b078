"""A label map drawn over its photo, with names and a legend, in colours that colour-blind people can tell apart.

Axes: H W pixels, N colours.
"""

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito, "Color Universal Design" (2008): told apart with any common colour vision. Black is the background's.
OKABE_ITO = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
OPACITY = 0.55  # of a label's colour over the photo
LISTED = 40  # labels that are named, on the photo and in the legend; the others are only counted
MISSING = 8  # labels that the legend names as not found; a longer list would outgrow the picture
CELL, TITLE, GAP = 320, 22, 8  # of a contact sheet, in pixels: side of a picture, height of its title, space between
GOLDEN = 0.618033988749895  # steps of the golden ratio spread hues evenly, however many there are
# Pillow's font has only Latin letters; for other scripts, common system fonts are tried.
FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "msyh.ttc")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Entry = tuple[tuple[int, ...] | None, str, Font]  # of the legend: the colour of its swatch, None for no swatch; a text


@lru_cache(maxsize=8)
def palette(count: int) -> UInt8[ndarray, "N 3"]:
    """RGB of labels 0 (the background, black) to count - 1: Okabe and Ito's seven, then hues in three lightnesses."""
    colours = [(0, 0, 0), *OKABE_ITO][:count]
    for i in range(count - len(colours)):
        r, g, b = colorsys.hls_to_rgb((0.13 + i * GOLDEN) % 1, (0.35, 0.75, 0.55)[i % 3], 0.75)
        colours.append((round(255 * r), round(255 * g), round(255 * b)))
    return np.array(colours, dtype=np.uint8)


def draw_overlay(
    photo: UInt8[ndarray, "H W 3"],
    labels: Int[ndarray, "H W"],
    found: Sequence[tuple[int, str, float]],
    missing: Sequence[tuple[int, str]] = (),
) -> Image.Image:
    """The photo tinted with the colours of its labels, which are named on it and in a legend below.

    Args:
        photo: RGB uint8, 0-255.
        labels: 0 is the background.
        found: index, name and share (0-1) of each label that was found, in the legend's order.
        missing: index and name of each label that was not, for the legend to say so.
    """
    colours = palette(1 + int(labels.max()))
    image = _tint(photo, labels, colours)
    size = int(np.clip(min(image.size) / 22, 11, 64))
    draw = ImageDraw.Draw(image)
    for index, name, _ in found[:LISTED]:
        if index:
            _write_name(draw, labels == index, readable(name, index, size), size, tuple(colours[index].tolist()))
    legend = _legend(_legend_entries(found, missing, colours, size), image.width, size)
    sheet = Image.new("RGB", (max(image.width, legend.width), image.height + legend.height), "white")
    sheet.paste(image, (0, 0))
    sheet.paste(legend, (0, image.height))
    return sheet


def draw_contact_sheet(tiles: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Pictures in a grid, a title below each: scaled down to a cell, and as many in a row as make it squarish.

    Args:
        tiles: at least one picture and its title.
    """
    across = min(6, math.ceil(len(tiles) ** 0.5))
    rows = -(-len(tiles) // across)
    sheet = Image.new("RGB", (across * (CELL + GAP) + GAP, rows * (CELL + TITLE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, title) in enumerate(tiles):
        x, y = GAP + i % across * (CELL + GAP), GAP + i // across * (CELL + TITLE + GAP)
        small = picture.copy()
        small.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        sheet.paste(small, (x + (CELL - small.width) // 2, y + CELL - small.height))
        text, font = readable(title, i + 1, TITLE * 2 // 3)
        while font.getlength(text) > CELL and len(text) > 1:
            text = f"{text[:-2]}…"
        draw.text((x + CELL // 2, y + CELL + TITLE // 2), text, fill="black", font=font, anchor="mm")
    return sheet


def _tint(photo: UInt8[ndarray, "H W 3"], labels: Int[ndarray, "H W"], colours: UInt8[ndarray, "N 3"]) -> Image.Image:
    tint = colours[labels]
    background = labels == 0
    tint[background] = photo[background]
    image = np.array(Image.blend(Image.fromarray(photo), Image.fromarray(tint), OPACITY))
    edge = np.zeros(labels.shape, np.uint8)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    thick = max(1, min(labels.shape) // 400)
    image[cv2.dilate(edge, np.ones((thick, thick), np.uint8)) > 0] = 255
    return Image.fromarray(image)


def _write_name(
    draw: ImageDraw.ImageDraw, mask: Bool[ndarray, "H W"], text: tuple[str, Font], size: int, colour: tuple[int, ...]
) -> None:
    """Write the name at the widest point of the label's largest component, if it fits; the legend has it anyway."""
    point = widest_point(mask)
    if point is None or point[2] < 0.6 * size:
        return
    name, font = text
    left, top, right, bottom = draw.textbbox((0, 0), name, font=font, anchor="lt")
    height, width = mask.shape
    if right - left > min(width, 6 * point[2]) or bottom - top > height:
        return  # it would cover other labels
    x = float(np.clip(point[0] - (right - left) / 2, 1, max(1, width - right - 1)))
    y = float(np.clip(point[1] - (bottom - top) / 2, 1, max(1, height - bottom - 1)))
    dark = sum(c * w for c, w in zip(colour, (0.3, 0.6, 0.1), strict=True)) < 128
    fill, outline = ("white", "black") if dark else ("black", "white")
    draw.text((x, y), name, fill=fill, font=font, anchor="lt", stroke_width=max(1, size // 9), stroke_fill=outline)


def widest_point(mask: Bool[ndarray, "H W"]) -> tuple[float, float, float] | None:
    """x and y of the point in the largest component that is farthest from its edge, and the distance, in pixels."""
    step = max(1, min(mask.shape) // 256)  # a name needs no finer position
    small = mask[::step, ::step].astype(np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(small, connectivity=4)
    if count < 2:
        return None
    largest = (components == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    distance = cv2.distanceTransform(np.pad(largest, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x * step), float(y * step), float(distance[y, x] * step)


def _legend_entries(
    found: Sequence[tuple[int, str, float]],
    missing: Sequence[tuple[int, str]],
    colours: UInt8[ndarray, "N 3"],
    size: int,
) -> list[Entry]:
    """A share for each label found, the first of those not found, and how many more there are of both."""
    entries: list[Entry] = []
    for index, label, share in found[:LISTED]:
        name, font = readable(label, index, size)
        entries.append((tuple(colours[index].tolist()), f"{name}  {share:.1%}", font))
    if len(found) > LISTED:
        entries.append((None, f"and {len(found) - LISTED} more", _default_font(size)))
    for index, label in missing[:MISSING]:
        name, font = readable(label, index, size)
        entries.append((None, f"{name}: not found", font))
    if len(missing) > MISSING:
        entries.append((None, f"{len(missing) - MISSING} more not found", _default_font(size)))
    return entries


def _legend(entries: Sequence[Entry], width: int, size: int) -> Image.Image:
    """A swatch and a text for each entry, in rows no wider than the photo."""
    gap = size // 2
    cell = max(int(font.getlength(text)) for _, text, font in entries) + size + 3 * gap
    columns = max(1, (width - gap) // cell)
    rows = -(-len(entries) // columns)
    line = int(1.6 * size)
    legend = Image.new("RGB", (max(width, cell + gap), rows * line + gap), "white")
    draw = ImageDraw.Draw(legend)
    for i, (colour, text, font) in enumerate(entries):
        x, y = gap + i % columns * cell, gap + i // columns * line
        if colour is not None:
            # The background keeps the photo's colours, so its swatch is empty.
            draw.rectangle((x, y, x + size, y + size), fill=colour if any(colour) else "white", outline="grey")
        draw.text((x + size + gap, y + size // 2), text, fill="black", font=font, anchor="lm")
    return legend


def readable(name: str, index: int, size: int) -> tuple[str, Font]:
    """The name, and a font with all its letters; if there is none, the label's number, which the JSON explains."""
    name = " ".join(name.split())
    name = name if len(name) <= 40 else name[:39] + "…"
    font = _font_with(name, size)
    return (f"label {index}", _default_font(size)) if font is None else (name, font)


def _font_with(text: str, size: int) -> Font | None:
    """The first font that has all letters of a text."""
    for file in (None, *FONTS):
        font = _default_font(size) if file is None else _system_font(file, size)
        if font is not None and _draws(font, text):
            return font
    return None


@lru_cache(maxsize=8)
def _default_font(size: int) -> Font:
    return ImageFont.load_default(size)


@lru_cache(maxsize=32)
def _system_font(file: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        return None


def _draws(font: Font, text: str) -> bool:
    """Whether the font has every letter, so that none becomes the box of a missing one."""
    missing = _glyph(font, "\uffff")
    return all(letter.isspace() or _glyph(font, letter) != missing for letter in set(text))


def _glyph(font: Font, letter: str) -> bytes:
    return bytes(font.getmask(letter))  # type: ignore[arg-type]  # Pillow's stubs do not know that it is a buffer


def draw_side_by_side(pictures: Sequence[tuple[str, Image.Image | str]], side: int = 480) -> Image.Image:
    """Pictures in rows of three, or of more where there are many, each with its whole title above it.

    Args:
        pictures: title, and the picture or, where there is none, why.
        side: of the square that each is fitted into, in pixels.
    """
    across, gap, line = min(len(pictures), max(3, math.ceil(len(pictures) ** 0.5))), 12, 20
    texts = [_wrap(title, side) + (_wrap(one, side) if isinstance(one, str) else []) for title, one in pictures]
    fitted = [None if isinstance(one, str) else _fit(one, side) for _, one in pictures]
    rows = [range(first, min(first + across, len(pictures))) for first in range(0, len(pictures), across)]
    above = [line * max(len(texts[i]) for i in row) for row in rows]  # a row's pictures begin at one height
    below = [max((one.height for i in row if (one := fitted[i])), default=0) for row in rows]
    size = gap + across * (side + gap), gap + sum(above) + sum(below) + 2 * gap * len(rows)
    sheet, top = Image.new("RGB", size, "white"), gap
    draw = ImageDraw.Draw(sheet)
    for row, words, height in zip(rows, above, below, strict=True):
        for left, i in zip(range(gap, size[0], side + gap), row, strict=False):
            for number, (text, font) in enumerate(texts[i]):
                draw.text((left, top + number * line), text, fill="black", font=font)
            if (picture := fitted[i]) is not None:
                sheet.paste(picture, (left, top + words))
        top += words + height + 2 * gap
    return sheet


def _fit(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture if size == list(picture.size) else picture.resize(size, Image.Resampling.LANCZOS)


def _wrap(text: str, width: int, size: int = 15) -> list[tuple[str, Font]]:
    """Lines that are no wider, and their font; a word that is wider, such as a path, is broken."""
    font = _font_with(text, size) or _default_font(size)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [(one, font) for one in lines]


def scale_down(
    photo: UInt8[ndarray, "H W 3"], labels: Int[ndarray, "H W"], side: int = 480
) -> tuple[UInt8[ndarray, "h w 3"], Int[ndarray, "h w"]]:
    """A photo and its label map with the long side at most `side`, so that names drawn on it stay readable there."""
    height, width = labels.shape
    scale = side / max(height, width)
    if scale >= 1:
        return photo, labels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA), small
