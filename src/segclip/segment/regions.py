"""Draws what the learnable centers gathered in a photo: a sheet with two pictures per center.

Axes: C centers, K labels, H W pixels of the photo, h w pixels as encoded, r c rows and columns of patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from segclip.model.segclip import SegCLIP
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.windows import fit_size, resize_map
from segclip.text.labels import BACKGROUND, Label, Labels, check_labels
from segclip.text.prompts import OPEN_TEMPLATES
from segclip.visualize import palette, readable

LONGEST = 3.0  # long side of the encoded photo, in units of the model's side
DARK = 0.15  # brightness of the photo where a center gathers nothing
GAP, TEXT, ACROSS = 10, 15, 2  # pixels between pictures, height of text in pixels, centers in a row


@dataclass(frozen=True)
class Gathered:
    """What the centers gathered in a photo, encoded as a whole.

    Attributes:
        photo: RGB uint8 (h,w,3), as encoded.
        hard: (r,c), the center of each patch.
        soft: (C,r,c), each center's share of each patch, 0-1.
        names: for each center, the label nearest to its region, and the label's probability; empty without labels.
    """

    photo: UInt8[ndarray, "h w 3"]
    hard: Int[ndarray, "r c"]
    soft: Float[ndarray, "C r c"]
    names: tuple[tuple[str, float], ...]


@torch.inference_mode()
def gather(model: SegCLIP, photo: UInt8[ndarray, "H W 3"], labels: Labels | Sequence[Label] = ()) -> Gathered:
    """Encode a whole photo at once, with its short side at the model's, and return what each center gathered.

    Args:
        model: in evaluation mode.
        photo: RGB uint8, 0-255.
        labels: names for the regions; empty: they stay unnamed.

    Raises:
        ValueError: invalid labels.
    """
    side, patch = model.config.image.side, model.config.image.patch
    size = fit_size(photo.shape[0], photo.shape[1], side, LONGEST * side)
    rows, columns = (max(1, round(length / patch)) for length in size)
    small = np.array(Image.fromarray(photo).resize((columns * patch, rows * patch), Image.Resampling.BICUBIC))
    device = model.logit_scale.device
    output = model.encode_image(model.image.normalise(small[None]).to(device))
    names: tuple[tuple[str, float], ...] = ()
    if labels:
        checked = check_labels(labels)
        text = LabelEmbedder(model)(checked.all_words, OPEN_TEMPLATES)
        name_of = [(*checked.names, BACKGROUND)[owner] for owner in checked.owners]
        probabilities, best = (
            (model.scale * F.normalize(output.regions[0], dim=-1) @ text.T).softmax(dim=-1).max(dim=-1)
        )
        names = tuple((name_of[i], p) for i, p in zip(best.tolist(), probabilities.tolist(), strict=True))
    hard, soft = (maps[0].unflatten(-1, (rows, columns)).float().cpu() for maps in (output.hard, output.soft))
    return Gathered(small, hard.argmax(dim=0).numpy(), soft.numpy(), names)


def draw_sheet(gathered: Gathered) -> Image.Image:
    """The photo and its regions; below, for each center, its patches (hard) and its shares of patches (soft)."""
    photo = gathered.photo
    height, width = photo.shape[:2]
    owner = np.asarray(
        Image.fromarray(gathered.hard.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    )
    soft = resize_map(torch.from_numpy(gathered.soft), (height, width)).numpy()
    colours = palette(len(soft) + 1)[1:]
    rows = [[_Picture("photo", photo), _Picture("one colour per center", _blend(photo, colours[owner]))]]
    cells = []
    for center, (share, colour) in enumerate(zip(soft, colours, strict=True)):
        hard = owner == center
        title = f"{center + 1} hard, {hard.mean():.0%}"
        if gathered.names and hard.any():
            title += ": {} {:.2f}".format(*gathered.names[center])
        cells.append(
            [
                _Picture(title, _brighten(photo, hard.astype(np.float32)), tuple(colour.tolist())),
                _Picture(f"{center + 1} soft", _brighten(photo, share), tuple(colour.tolist())),
            ]
        )
    rows += [list(chain(*cells[i : i + ACROSS])) for i in range(0, len(cells), ACROSS)]
    return _lay_out(rows, width, height)


@dataclass(frozen=True)
class _Picture:
    title: str
    pixels: UInt8[ndarray, "h w 3"]
    colour: tuple[int, ...] | None = None  # of the center


def _brighten(photo: UInt8[ndarray, "h w 3"], light: Float[ndarray, "h w"]) -> UInt8[ndarray, "h w 3"]:
    return (photo * (DARK + (1 - DARK) * light[..., None].clip(0, 1))).round().astype(np.uint8)


def _blend(photo: UInt8[ndarray, "h w 3"], colours: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h w 3"]:
    return (photo // 2 + colours // 2).astype(np.uint8)


def _lay_out(rows: list[list[_Picture]], width: int, height: int) -> Image.Image:
    """Pictures in rows, each with a title above it."""
    across, row_height = max(map(len, rows)), height + 2 * TEXT + GAP
    sheet = Image.new("RGB", (GAP + across * (width + GAP), GAP + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            left, top, indent = GAP + x * (width + GAP), GAP + y * row_height, 0
            if picture.colour:
                indent = TEXT + GAP // 2
                draw.rectangle((left, top, left + TEXT, top + TEXT), fill=picture.colour)
            text, font = readable(picture.title, y * across + x, TEXT)
            while font.getlength(text) > width - indent and len(text) > 1:
                text = f"{text[:-2]}…"
            draw.text((left + indent, top), text, fill="black", font=font)
            sheet.paste(Image.fromarray(picture.pixels), (left, top + 2 * TEXT - TEXT // 2))
    return sheet
