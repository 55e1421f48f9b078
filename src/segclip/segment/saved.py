"""The files of a result: their names, and reading back what was saved, or saying what is wrong with them.

Axes: H W pixels.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image

from segclip.data.photos import PhotoSource, open_photo
from segclip.utils.messages import brief

KINDS = {"width": int, "height": int, "protocol": str, "labels": list, "presence": dict, "found": list}
REMEDY = "save the result again, or give another folder or stem"


def paths(folder: str | os.PathLike, stem: str) -> tuple[Path, Path, Path]:
    """The overlay, the mask and the record. Raises ValueError for a stem that is no plain file name."""
    if not stem or stem == ".." or Path(stem).name != stem:
        raise ValueError(f"stem {stem!r} is not a file name; give one without a folder")
    folder = Path(folder)
    return folder / f"{stem}.overlay.png", folder / f"{stem}.mask.png", folder / f"{stem}.json"


def read(
    folder: str | os.PathLike, stem: str, photo: PhotoSource | None
) -> tuple[Int[ndarray, "H W"], Float[ndarray, "H W"], dict[str, Any], UInt8[ndarray, "H W 3"] | None]:
    """The label map, a score of each pixel (the mean of its label's), what the record says, and the photo if given.

    Raises:
        ValueError: a file is missing, damaged, or does not belong to the others; a photo of another size.
    """
    _, mask, text = paths(folder, stem)
    record, labels = _read_record(text), _read_mask(mask)
    size = record["height"], record["width"]
    if labels.shape != size:
        raise ValueError(
            f"{mask}: {labels.shape[1]}x{labels.shape[0]}, but {text.name} says {size[1]}x{size[0]}; {REMEDY}"
        )
    if labels.max() > len(record["labels"]):
        raise ValueError(f"{mask}: has label {labels.max()}, but {text.name} names {len(record['labels'])}; {REMEDY}")
    scores = np.zeros(1 + len(record["labels"]), np.float32)
    for one in record["found"]:
        scores[one["index"]] = one["score"]
    pixels = None if photo is None else open_photo(photo)
    if pixels is not None and pixels.shape[:2] != size:
        raise ValueError(
            f"photo of {pixels.shape[1]}x{pixels.shape[0]}; {text} is of {size[1]}x{size[0]}: give that photo"
        )
    return labels, scores[labels], record, pixels


def check_found(folder: str | os.PathLike, stem: str, told: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """See that the record tells of what is in the mask. Raises ValueError where one of them was changed."""
    _, mask, text = paths(folder, stem)

    def areas(ones: list[dict[str, Any]]) -> list[tuple[int, str, list[int], float]]:
        return sorted((one["index"], one["label"], list(one["box"]), round(one["share"], 6)) for one in ones)

    if areas(told) != areas(found):
        raise ValueError(f"{mask}: its labels are not where {text.name} says; one of both was changed: {REMEDY}")


def _read_record(file: Path) -> dict[str, Any]:
    """Raises ValueError where there is none, or it is not as `Segmentation.record` makes it."""
    try:
        record = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error}); {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is no whole JSON ({error}); {REMEDY}") from None
    for name, kind in KINDS.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"{file}: without {name!r}, or of another kind than segclip writes; {REMEDY}")
    names = record["labels"]
    presence = [record["presence"].get(name) for name in names if isinstance(name, str)]
    if (
        "background" not in record
        or len(presence) < len(names)
        or not all(isinstance(one, int | float) and 0 <= one <= 1 for one in presence)
    ):
        raise ValueError(f"{file}: a label without a presence in 0..1, or no 'background'; {REMEDY}")
    for one in record["found"]:
        if not _is_found(one, len(names)):
            raise ValueError(f"{file}: has {brief(one)} among what was found, which is not so written; {REMEDY}")
    return record


def _is_found(one: Any, count: int) -> bool:
    """Whether it has what a `Found` has."""
    try:
        numbers = [one["share"], one["score"], *one["box"]]
        in_range = 0 <= one["index"] <= count and isinstance(one["index"], int) and isinstance(one["label"], str)
        return in_range and len(numbers) == 6 and all(isinstance(number, int | float) for number in numbers)
    except (KeyError, TypeError):
        return False


def _read_mask(file: Path) -> Int[ndarray, "H W"]:
    """Raises ValueError where there is none, or its pixels are no indices."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("P", "L", "I;16"):
                raise ValueError(f"{file}: an image of mode {image.mode}, whose pixels are no indices; {REMEDY}")
            return np.asarray(image).astype(np.int32)
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file, only half of what is saved is there; {REMEDY}") from None
    except (OSError, SyntaxError) as error:  # Pillow's for a broken file
        raise ValueError(f"{file}: cannot be read ({error}); {REMEDY}") from None
