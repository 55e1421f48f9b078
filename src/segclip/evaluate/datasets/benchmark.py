"""What benchmarks have in common: photos with masks, their names, and how their files are found and read.

A mask is uint8 (H,W): the index of a class, or 255 where nobody labelled the pixel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from segclip.data.photos import PHOTO_SUFFIXES, open_photo

IGNORED = 255
MAX_CLASSES = 255  # in 8 bits, beside IGNORED

Mask = UInt8[ndarray, "H W"]


class MaskError(ValueError):
    """A mask that cannot be used; the message names it, what is wrong, and the remedy."""


@dataclass(frozen=True)
class Pair:
    """A photo and where its mask is."""

    key: str
    photo: Path
    mask: Path


@dataclass(frozen=True)
class Benchmark:
    """A set of photos with masks.

    Attributes:
        name: as the command names it.
        split: "val" or "train"; empty for a folder.
        names: of the classes, by their index in the masks; "background" first where the set has one.
        pairs: photos and masks, sorted by key.
        read: a pair's mask. Raises MaskError.
        sclip_names: several names for some of the classes, by index, as SCLIP (arXiv 2312.01597) asks for them.
    """

    name: str
    split: str
    names: tuple[str, ...]
    pairs: Sequence[Pair]
    read: Callable[[Pair], Mask]
    sclip_names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def background(self) -> bool:
        """Whether class 0 is the background."""
        return self.names[0] == "background"

    def load(self, pair: Pair) -> tuple[UInt8[ndarray, "H W 3"], Mask]:
        """A photo and its mask. Raises PhotoError or MaskError, naming the file."""
        photo, mask = open_photo(pair.photo), self.read(pair)
        if photo.shape[:2] != mask.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, photo.shape)]
            raise MaskError(f"{pair.mask}: {sizes[0]} pixels, but its photo {pair.photo} has {sizes[1]}; mend the pair")
        return photo, mask


def find(root: Path, *candidates: str) -> Path:
    """The first of these files or folders in `root` that exists. Raises ValueError, naming them, where none does."""
    for candidate in candidates:
        if (path := root / candidate).exists():
            return path
    raise ValueError(f"{root}: expected {' or '.join(candidates)} there; --root names the folder that holds it")


def read_keys(index: Path) -> list[str]:
    """The photos' names that a file lists, one a line, sorted. Raises ValueError for a path in place of a name."""
    keys = index.read_text("utf-8").split()
    strange = [key for key in keys if Path(key).name != key]
    if not keys or strange:
        raise ValueError(f"{index}: expected one photo's name a line" + (f", not {strange[0]!r}" if strange else ""))
    return sorted(keys)


def match_stems(photos: Path, masks: Path) -> list[Pair]:
    """Photos and masks of the same stem in two folders; where one of them is missing, reading the pair says so."""
    for folder in (photos, masks):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; photos and masks are expected in {photos} and {masks}")
    images = {p.stem: p for p in photos.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES}
    # mmsegmentation leaves its own versions beside the official ones.
    truths = {p.stem: p for p in masks.glob("*.png") if not p.stem.endswith("TrainIds")}
    if not images or not truths:
        raise ValueError(f"{photos if not images else masks}: no {'photos' if not images else 'PNGs'} in it")
    return [
        Pair(key, images.get(key, photos / f"{key}.jpg"), truths.get(key, masks / f"{key}.png"))
        for key in sorted(images.keys() | truths.keys())
    ]


def png_reader(meaning: Mapping[int, int]) -> Callable[[Pair], Mask]:
    """`Benchmark.read` for index PNGs; `meaning` as for `read_mask`."""
    return partial(_read_pair, meaning=meaning)


def _read_pair(pair: Pair, meaning: Mapping[int, int]) -> Mask:
    return read_mask(pair.mask, meaning)


def class_values(classes: int) -> dict[int, int]:
    """The meaning of masks whose values are the class indices, 255 ignored."""
    return {**{i: i for i in range(classes)}, IGNORED: IGNORED}


def read_mask(path: Path, meaning: Mapping[int, int]) -> Mask:
    """Read an index PNG.

    Args:
        path: 8 bits, greyscale or with a palette; the pixel values count, not the colours.
        meaning: the class index, or IGNORED, of each value that may occur.

    Raises:
        MaskError: missing or broken; RGB or 16-bit; or with a value that `meaning` lacks.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.asarray(image)
    except FileNotFoundError:
        raise MaskError(f"{path}: no such mask; copy it there, or leave its photo out") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise MaskError(f"{path}: cannot be read ({error}); copy or download it again") from error
    if mode.startswith("I"):
        raise MaskError(f"{path}: a 16-bit mask; expected 8-bit class indices, 255 ignored: save it with 8 bits")
    if mode not in ("L", "P"):
        raise MaskError(
            f"{path}: an image of mode {mode}; expected class indices (mode L or P): colours must be turned into the "
            "indices of the palette they come from"
        )
    return translate(values, meaning, str(path))


def translate(values: ndarray, meaning: Mapping[int, int], name: str) -> Mask:
    """Pixel values -> class indices. Raises MaskError for a value that `meaning` lacks; `name` is the mask's."""
    size = max(int(values.max(initial=0)), *meaning) + 1
    table = np.full(size, -1, np.int16)
    table[list(meaning)] = list(meaning.values())
    found = table[values]
    if (found < 0).any():
        strange = np.unique(values[found < 0])
        shown = ", ".join(map(str, strange[:5])) + (" ..." if len(strange) > 5 else "")
        raise MaskError(f"{name}: has the values {shown}, which are no class; expected {_ranges(meaning)}")
    return found.astype(np.uint8)


def _ranges(values: Mapping[int, int]) -> str:
    """{0, 1, 2, 255} -> "0 to 2, 255"."""
    numbers = np.array(sorted(values))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
