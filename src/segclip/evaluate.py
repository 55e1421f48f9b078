"""How well label maps match the truth: intersection over union, pooled over all photos."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer
from numpy import ndarray
from PIL import Image

from segclip.data.photos import PHOTO_SUFFIXES

IGNORED = 255  # in masks: pixels that nobody labelled


class Confusion:
    """Pixels by their true class (rows) and the class found (columns), of K classes, summed over photos."""

    def __init__(self, classes: int) -> None:
        self.pixels: Int64[ndarray, "K K"] = np.zeros((classes, classes), np.int64)

    def add(self, truth: Integer[ndarray, "H W"], found: Integer[ndarray, "H W"]) -> None:
        """Count a photo's pixels, those that nobody labelled left out."""
        size, seen = len(self.pixels), truth != IGNORED
        pairs = truth[seen].astype(np.int64) * size + found[seen]
        self.pixels += np.bincount(pairs, minlength=size**2).reshape(size, size)

    def iou(self) -> list[float | None]:
        """Intersection over union of each class; None where neither truth nor result has it."""
        both = np.diag(self.pixels)
        union = self.pixels.sum(axis=0) + self.pixels.sum(axis=1) - both
        return [float(b / u) if u else None for b, u in zip(both, union, strict=True)]

    def miou(self) -> float:
        """Mean over the classes that are there; 0 where none is."""
        there = [value for value in self.iou() if value is not None]
        return float(np.mean(there)) if there else 0.0


@dataclass(frozen=True)
class FolderSet:
    """Photos with masks: `images/`, `masks/` (index PNGs, 255 ignored) and `classes.json`.

    Attributes:
        names: of the classes, by index, without the background.
        background: whether index 0 is the background; the names then begin at index 1.
        files: photo and mask of each.
    """

    names: tuple[str, ...]
    background: bool
    files: tuple[tuple[Path, Path], ...]

    def __iter__(self) -> Iterator[tuple[Path, Integer[ndarray, "H W"]]]:
        """Each photo's path and its mask."""
        for photo, mask in self.files:
            with Image.open(mask) as image:
                yield photo, np.asarray(image)


def open_folder(folder: Path) -> FolderSet:
    """Open a set. Raises ValueError for a folder that is none, naming what is expected where."""
    try:
        classes = {
            int(i): name for i, name in json.loads((folder / "classes.json").read_text("utf-8"))["classes"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{folder}: no classes.json like {{"classes": {{"0": "cat"}}}} ({error})') from error
    if sorted(classes) != list(range(len(classes))) or not classes:
        raise ValueError(f"{folder}: classes.json numbers its classes {sorted(classes)}; expected 0, 1, 2 ...")
    names: Sequence[str] = [classes[i] for i in sorted(classes)]
    files = tuple((_photo_of(folder, mask), mask) for mask in sorted((folder / "masks").glob("*.png")))
    if not files:
        raise ValueError(f"{folder}: no masks/*.png; expected images/NAME.jpg with masks/NAME.png")
    background = names[0] == "background"
    return FolderSet(tuple(names[background:]), background, files)


def _photo_of(folder: Path, mask: Path) -> Path:
    for suffix in PHOTO_SUFFIXES:
        if (photo := folder / "images" / f"{mask.stem}{suffix}").is_file():
            return photo
    raise ValueError(f"{mask}: no photo images/{mask.stem}.* beside it")
