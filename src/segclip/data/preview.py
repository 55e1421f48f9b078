"""A sheet to look at before training: what the model will see of some samples."""

from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import mark_boundaries

from segclip.data.crops import Box, crop_photo
from segclip.data.shards import Sample, Shards
from segclip.data.superpixels import crop_superpixels, find_superpixels, patch_superpixels
from segclip.utils.files import atomic

SIDE, PATCH = 224, 16  # of the paper's model
GAP, TEXT = 12, 13  # pixels between pictures; height of letters
COLUMNS = ("photo", "superpixels", "majority, per patch", "reference, per patch")


def write_preview(shards: Shards, count: int, file: Path) -> None:
    """Write a PNG with a row for each of `count` samples, spread evenly over the shards.

    A row has the centre of the photo, its superpixels, their ids per patch by both reductions (a colour an id), and the
    captions.

    Raises:
        ValueError: `count` is under 1; a sample that is damaged.
    """
    if count < 1:
        raise ValueError(f"preview of {count} photos; give at least 1")
    numbers = np.unique(np.linspace(0, len(shards) - 1, count).round().astype(int)).tolist()
    rows = [_row(shards[number]) for number in numbers]
    sheet = Image.new("RGB", (rows[0].width, TEXT + 2 * GAP + sum(row.height for row in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(COLUMNS):
        draw.text((GAP + i * (SIDE + GAP), GAP), title, fill="black", font=ImageFont.load_default(TEXT))
    top = TEXT + 2 * GAP
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with atomic(file) as temporary:
        sheet.save(temporary, "PNG")


def _row(sample: Sample) -> Image.Image:
    photo, ids = sample.photo(), sample.superpixels()
    ids = find_superpixels(photo) if ids is None else ids
    side = min(photo.shape[:2])
    box = Box((photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2, side, side)
    crop = crop_photo(photo, box, SIDE)
    cut = crop_superpixels(ids, (box.top, box.left, side, side), SIDE)
    pictures = [crop, np.asarray(255 * mark_boundaries(crop, cut, color=(1, 1, 0)), np.uint8)]
    pictures += [_patches(patch_superpixels(cut, PATCH, reduction)) for reduction in ("majority", "reference")]
    font = ImageFont.load_default(TEXT)
    lines = [f"{sample.key}: {sample.record.get('photo', '')}", *sample.captions]
    width = len(pictures) * (SIDE + GAP) + GAP
    row = Image.new("RGB", (width, SIDE + len(lines) * (TEXT + 4) + 2 * GAP), "white")
    for i, picture in enumerate(pictures):
        row.paste(Image.fromarray(picture), (GAP + i * (SIDE + GAP), 0))
    draw = ImageDraw.Draw(row)
    for i, line in enumerate(lines):
        text = " ".join(line.split())
        draw.text((GAP, SIDE + 4 + i * (TEXT + 4)), text[: width // 6], fill="black" if i else "grey", font=font)
    return row


def _patches(ids: Integer[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "S S 3"]:
    """Each patch in the colour of its id, the same for an id anywhere on the sheet."""
    colours = np.random.default_rng(0).integers(40, 256, (1 + int(ids.max()), 3)).astype(np.uint8)
    return colours[ids].repeat(PATCH, axis=0).repeat(PATCH, axis=1)
