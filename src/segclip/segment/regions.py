"""Draws what the learnable centers gathered in a photo: a sheet with two pictures per center, or a compact row.

Axes: C centers, K labels, H W pixels of the photo, h w pixels as encoded, r c rows and columns of patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image

from segclip.model.segclip import SegCLIP
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.sheets import Picture, Sheet, draw
from segclip.segment.windows import fit_size, resize_map
from segclip.text.labels import BACKGROUND, Label, Labels, check_labels
from segclip.text.prompts import OPEN_TEMPLATES
from segclip.visualize import palette

LONGEST = 3.0  # long side of the encoded photo, in units of the model's side
DARK = 0.15  # brightness of the photo where a center gathers nothing
ACROSS = 4  # pictures in a row of a sheet
IN_A_ROW = 4  # centers in the one row of a compact sheet

Layout = Literal["sheet", "row"]


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


def arrange(gathered: Gathered, layout: Layout = "sheet") -> Sheet:
    """The photo, its regions, and the centers that gathered something, those with the most patches first in a row.

    Args:
        gathered: in a photo.
        layout: "sheet": for each center its patches (hard) and its shares of patches (soft). "row": one row, as a paper
            has room for: of the centers with the most patches, the patches.
    """
    photo = gathered.photo
    height, width = photo.shape[:2]
    owner = np.asarray(
        Image.fromarray(gathered.hard.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    )
    count = len(gathered.soft)
    colours = palette(count + 1)[1:]
    areas = np.bincount(owner.ravel(), minlength=count) / owner.size
    there = [center for center in range(count) if areas[center]]
    regions = f"{len(there)} of {count} centers" if len(there) < count else "one colour per center"
    pictures = [Picture("photo", photo), Picture(regions, _blend(photo, colours[owner]))]
    if layout == "row":
        there = sorted(there, key=lambda center: -areas[center])[:IN_A_ROW]
    for center in there:
        red, green, blue = colours[center].tolist()
        title = f"{center + 1}{'' if layout == 'row' else ' hard'}, {areas[center]:.0%}"
        if gathered.names:
            title += ": {} {:.2f}".format(*gathered.names[center])
        hard = _brighten(photo, (owner == center).astype(np.float32))
        pictures.append(Picture(title, hard, (red, green, blue)))
        if layout == "sheet":
            soft = resize_map(torch.from_numpy(gathered.soft[center : center + 1]), (height, width))[0].numpy()
            pictures.append(Picture(f"{center + 1} soft", _brighten(photo, soft), (red, green, blue)))
    across = len(pictures) if layout == "row" else min(ACROSS, len(pictures))
    return Sheet([pictures[i : i + across] for i in range(0, len(pictures), across)])


def draw_sheet(gathered: Gathered) -> Image.Image:
    """`arrange` as a picture."""
    return draw(arrange(gathered))


def _brighten(photo: UInt8[ndarray, "h w 3"], light: Float[ndarray, "h w"]) -> UInt8[ndarray, "h w 3"]:
    return (photo * (DARK + (1 - DARK) * light[..., None].clip(0, 1))).round().astype(np.uint8)


def _blend(photo: UInt8[ndarray, "h w 3"], colours: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "h w 3"]:
    return (photo // 2 + colours // 2).astype(np.uint8)
