"""Masks: the true class of each pixel, from the files of the benchmarks.

A mask is uint8 (H,W): the index of a class, or 255 where nobody labelled the pixel.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

IGNORED = 255
CLASSES = 255  # at most, in 8 bits beside IGNORED

Mask = UInt8[ndarray, "H W"]


class MaskError(ValueError):
    """A mask that cannot be used; the message names it, what is wrong, and the remedy."""


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
