"""Superpixels of photos, for the superpixel loss: found on the photo, cut like it, reduced to an id per patch."""

from typing import Literal

import numpy as np
from jaxtyping import Int32, Integer, UInt8
from numpy import ndarray

# The authors' settings of scikit-image's Felzenszwalb (arXiv 2211.14813, their training data).
SCALE = 224.0
SIGMA = 0.9
MIN_SIZE = 224


def felzenszwalb(photo: UInt8[ndarray, "H W 3"]) -> Int32[ndarray, "H W"]:
    """Superpixel id of each pixel, from 0, by Felzenszwalb's graph method with the authors' settings.

    Args:
        photo: RGB uint8 (H,W,3), 0-255, as stored: the settings count pixels, so its size matters.
    """
    from skimage import segmentation  # here, so that `import segclip` does not wait for SciPy

    return segmentation.felzenszwalb(photo, scale=SCALE, sigma=SIGMA, min_size=MIN_SIZE).astype(np.int32)


def crop_superpixels(
    superpixels: Integer[ndarray, "H W"], box: tuple[int, int, int, int], size: int
) -> Integer[ndarray, "{size} {size}"]:
    """The superpixels of a crop, resized to a square by nearest neighbour.

    Args:
        superpixels: ids (H,W) of the whole photo.
        box: top, left, height, width of the crop, in pixels.
        size: side of the result; row i is row floor(i * height / size) of the crop.

    Raises:
        ValueError: the box is empty or reaches outside.
    """
    top, left, height, width = box
    whole = superpixels.shape
    if not (0 <= top < top + height <= whole[0] and 0 <= left < left + width <= whole[1]):
        raise ValueError(f"crop {box} (top, left, height, width) is not inside the photo of {whole}; move or shrink it")
    rows = top + np.arange(size) * height // size
    columns = left + np.arange(size) * width // size
    return superpixels[rows[:, None], columns]


def patch_superpixels(
    superpixels: Integer[ndarray, "H W"], patch: int, reduction: Literal["majority", "reference"] = "majority"
) -> Int32[ndarray, "rows columns"]:
    """One superpixel id per patch.

    Args:
        superpixels: ids (H,W), 0 or more.
        patch: side of a patch in pixels.
        reduction: "majority": the id of most pixels, the smallest of several; "reference": floor(mean of the ids), as
            the authors' code has it, which gives many patches an id that none of their pixels has.

    Raises:
        ValueError: H or W is not a multiple of the patch.
    """
    height, width = superpixels.shape
    if height % patch or width % patch:
        raise ValueError(
            f"superpixels of {height}x{width} are not a multiple of the patch {patch}; resize or crop them"
        )
    rows, columns = height // patch, width // patch
    blocks = superpixels.reshape(rows, patch, columns, patch).swapaxes(1, 2).reshape(rows * columns, patch * patch)
    blocks = blocks.astype(np.int64)
    ids = _majority(blocks) if reduction == "majority" else blocks.sum(axis=1) // patch**2
    return ids.reshape(rows, columns).astype(np.int32)


def _majority(blocks: Integer[ndarray, "P N"]) -> Integer[ndarray, "P"]:
    """Most frequent id of each row, the smallest of several; ids are 0 or more."""
    base = blocks.max() + 1
    keys, counts = np.unique(blocks + base * np.arange(len(blocks))[:, None], return_counts=True)  # (row, id) pairs
    row, ids = keys // base, keys % base
    best = np.lexsort((ids, -counts, row))  # by row, then count, then id: the first of each row wins
    return ids[best][np.unique(row[best], return_index=True)[1]]
