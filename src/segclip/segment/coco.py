"""A label map in COCO's format: run lengths from pycocotools, one annotation per label.

Axes: H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from segclip.utils.optional import require

Record = dict[str, Any]


def encode_rle(mask: Bool[ndarray, "H W"]) -> Record:
    """COCO's compressed run lengths, ready for JSON: {"size": [H, W], "counts": text}.

    Raises:
        ValueError: pycocotools is not installed.
    """
    rle = pycocotools_mask().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(counts: str, size: tuple[int, int]) -> Bool[ndarray, "H W"]:
    """The mask that was given to `encode_rle`; size: its height and width."""
    return pycocotools_mask().decode({"size": list(size), "counts": counts.encode("ascii")}).astype(bool)


def pycocotools_mask() -> Any:
    """The module pycocotools.mask.

    Raises:
        ValueError: it is not installed.
    """
    return require("pycocotools.mask", extra="annotate")


def image(number: int, file_name: str, size: tuple[int, int]) -> Record:
    """An entry of "images"; size: height and width of the upright photo."""
    return {"id": number, "file_name": file_name, "width": size[1], "height": size[0]}


def annotation(
    number: int,
    image_id: int,
    label: int,
    segmentation: object,
    area: int,
    box: tuple[int, int, int, int],
    score: float,
) -> Record:
    """An entry of "annotations".

    Args:
        number: of the annotation.
        image_id: of its photo.
        label: index of the label, which is the category.
        segmentation: run lengths, or a list of polygons.
        area: in pixels.
        box: left, top, right, bottom; COCO's is left, top, width, height.
        score: 0-1.
    """
    left, top, right, bottom = box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": label,
        "segmentation": segmentation,
        "area": area,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
        "score": score,
    }


def categories(names: Sequence[str]) -> list[Record]:
    """All labels, found or not, numbered as in the label map."""
    return [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(names, 1)]
