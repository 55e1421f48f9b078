"""A contact sheet: a photo, what was found in it and the truth, side by side; for mini_quality.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Int, Integer, UInt8
from PIL import Image, ImageDraw
from quality_measures import answered, ious_of

from segclip import Segmentation
from segclip.evaluate.datasets.benchmark import IGNORED, Mask
from segclip.utils.files import atomic
from segclip.visualize import draw_overlay, palette, readable

SUFFIXES = (".jpg", ".jpeg", ".png")
PHOTOS = 24
COLUMNS = 2  # twelve rows: about as tall as a page
TILE = (1200, 266)  # width and height; three pictures and the legend beside them
PICTURE = (320, 250)  # a picture lies in this box, at its own shape
GAP = 8
TEXT = 15  # height of the legend's letters, in pixels
LINE = 19
ENTRIES = 11  # of a legend; below its title and above a line for how many more there are


@dataclass
class Sheet:
    """Collects the tiles of chosen photos.

    Attributes:
        keys: of the photos to draw.
    """

    keys: Sequence[str]
    tiles: list[Image.Image] = field(default_factory=list)

    def add(self, key: str, found: Segmentation, truth: Mask, wanted: Sequence[int]) -> None:
        """Draw a photo, if it is one of `keys`; `wanted` are the classes of its labels."""
        if key in self.keys:
            self.tiles.append(draw_tile(key, found, truth, wanted))

    def save(self, path: Path) -> None:
        """Write the tiles, row by row; the suffix says the format."""
        rows = max(1, -(-len(self.tiles) // COLUMNS))
        sheet = Image.new("RGB", (COLUMNS * TILE[0], rows * TILE[1]), "white")
        for i, tile in enumerate(self.tiles):
            sheet.paste(tile, (i % COLUMNS * TILE[0], i // COLUMNS * TILE[1]))
        with atomic(path) as file:
            sheet.save(file, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=90)


def draw_tile(key: str, found: Segmentation, truth: Mask, wanted: Sequence[int]) -> Image.Image:
    """The photo; what was found; the truth, dark where nobody labelled; and each label's colour and IoU.

    Args:
        key: the photo's name, the title.
        found: in the photo, given its own labels.
        truth: its classes.
        wanted: the class of each label, in order.
    """
    right = np.zeros(IGNORED + 1, np.uint8)
    right[list(wanted)] = np.arange(1, 1 + len(wanted))
    dark = np.where((truth == IGNORED)[..., None], found.photo // 4, found.photo)
    plain = np.zeros_like(found.labels)
    tile = Image.new("RGB", TILE, "white")
    pictures = ((found.photo, plain), (found.photo, found.labels), (dark, right[truth]))
    for column, (photo, labels) in enumerate(pictures):
        tile.paste(_picture(photo, labels, found.names), (column * (PICTURE[0] + GAP), 0))
    figures = zip(ious_of(found.labels, truth, wanted), answered(found.labels, len(wanted)), strict=True)
    texts = [f"{iou:.2f}" if there else "not found" for iou, there in figures]
    _write_legend(ImageDraw.Draw(tile), 3 * (PICTURE[0] + GAP), key, found.names, texts)
    return tile


def _picture(
    photo: UInt8[np.ndarray, "H W 3"], labels: Integer[np.ndarray, "H W"], names: Sequence[str]
) -> Image.Image:
    """The photo at the size of PICTURE's box, tinted; the names stand on it where they fit."""
    height, width = labels.shape
    scale = min(PICTURE[0] / width, PICTURE[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
    small: Int[np.ndarray, "h w"] = cv2.resize(labels.astype(np.int16), size, interpolation=cv2.INTER_NEAREST)
    # The background stands first, so that the legend, which is cut off, is never empty.
    found = [(0, "", 0.0), *((int(i), names[i - 1], 0.0) for i in np.unique(small) if i)]
    return draw_overlay(shown, small, found).crop((0, 0, *size))


def _write_legend(draw: ImageDraw.ImageDraw, left: int, key: str, names: Sequence[str], texts: Sequence[str]) -> None:
    colours = palette(1 + len(names))
    name, font = readable(key, 0, TEXT)
    draw.text((left, LINE // 2), name, fill="grey", font=font, anchor="lm")
    for i, (label, text) in enumerate(list(zip(names, texts, strict=True))[:ENTRIES], start=1):
        y = i * LINE
        draw.rectangle((left, y, left + TEXT, y + TEXT), fill=tuple(colours[i].tolist()), outline="grey")
        name, font = readable(label, i, TEXT)
        draw.text((left + TEXT + GAP, y + TEXT // 2), f"{name}  {text}", fill="black", font=font, anchor="lm")
    if len(names) > ENTRIES:
        y = (ENTRIES + 1) * LINE + TEXT // 2
        _, font = readable("", 0, TEXT)
        draw.text((left, y), f"and {len(names) - ENTRIES} more", fill="black", font=font, anchor="lm")
