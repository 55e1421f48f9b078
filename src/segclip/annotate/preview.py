"""A contact sheet of annotations: some of the photos with what was found in them, to see at a glance how it went."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from segclip.annotate.segments import Collection, PhotoSegments
from segclip.data.own_pictures import is_own, save_own_jpeg
from segclip.data.photos import PhotoError, open_photo
from segclip.segment import coco
from segclip.utils.files import atomic
from segclip.visualize import draw_contact_sheet, draw_overlay

PREVIEW = "preview.jpg"
SHOWN = 24  # photos at most, spread evenly over all
WORKING = 480  # long side, in pixels, at which a photo is drawn before it becomes a tile

log = logging.getLogger(__name__)


def write_preview(folder: Path, out: Path, found: Collection) -> None:
    """Write `preview.jpg`; a photo of the user's own with that name is left as it is.

    Args:
        folder: of the photos.
        out: where to write.
        found: what was found in them.
    """
    file = out / PREVIEW
    if file.exists() and not is_own(file):
        log.warning("%s: is a photo of your own, so no contact sheet is written; give another --out for one", file)
        return
    tiles = list(_tiles(folder, found))
    if tiles:
        with atomic(file) as temporary:
            save_own_jpeg(draw_contact_sheet(tiles), temporary)


def _tiles(folder: Path, found: Collection) -> Iterator[tuple[Image.Image, str]]:
    """A picture and a title of each photo that is shown."""
    count = sum(1 for _ in found.photos())
    chosen = set(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int).tolist())
    for number, photo in enumerate(found.photos()):
        if number in chosen:
            try:
                pixels = open_photo(folder / photo.photo)
            except PhotoError:  # it went meanwhile
                continue
            if pixels.shape[:2] == (photo.height, photo.width):  # or it was changed meanwhile
                yield _draw(pixels, photo), photo.photo


def _draw(pixels: np.ndarray, photo: PhotoSegments) -> Image.Image:
    """The photo, scaled down, with its segments and a legend."""
    scale = min(1.0, WORKING / max(photo.width, photo.height))
    width, height = (max(1, round(side * scale)) for side in (photo.width, photo.height))
    labels = np.zeros((photo.height, photo.width), np.int32)
    for segment in photo.foreground():
        labels[coco.decode_rle(segment.counts, labels.shape)] = segment.index
    small = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    picture = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    shares = [(segment.index, segment.label, segment.share) for segment in photo.segments]
    return draw_overlay(picture, np.asarray(small), shares)
