"""Superpixels of photos, for the superpixel loss: found on the photo, cut like it, reduced to an id per patch."""

from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8
from numpy import ndarray

# The authors' settings of scikit-image's Felzenszwalb (arXiv 2211.14813, their training data).
SCALE = 224.0
SIGMA = 0.9
MIN_SIZE = 224

FEW = 1000  # ids up to here are counted as they are; others are numbered anew first

Method = Literal["scikit-image", "opencv"]
Reduction = Literal["majority", "reference"]


def find_superpixels(photo: UInt8[ndarray, "H W 3"], method: Method = "scikit-image") -> Int32[ndarray, "H W"]:
    """Superpixel id of each pixel, from 0, by Felzenszwalb's graph method with the authors' settings.

    Args:
        photo: RGB uint8 (H,W,3), 0-255, as stored: the settings count pixels, so its size matters.
        method: "scikit-image", as the authors have it, or "opencv": the same method and settings in OpenCV's code,
            faster, with other borders (docs/results.md says how much faster, and how much they agree).
    """
    if method == "scikit-image":
        return felzenszwalb(photo)
    import cv2  # here, so that `import segclip` does not wait for a large library

    finder = cv2.ximgproc.segmentation.createGraphSegmentation(SIGMA, SCALE, MIN_SIZE)
    return without_gaps(np.asarray(finder.processImage(photo)))  # OpenCV's numbers have gaps


def without_gaps(ids: Integer[ndarray, "H W"]) -> Int32[ndarray, "H W"]:
    """The same superpixels numbered from 0, in the order of their ids."""
    return (np.cumsum(np.bincount(ids.reshape(-1)) > 0) - 1).astype(np.int32)[ids]


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
    return superpixels[rows][:, columns]


def patch_superpixels(
    superpixels: Integer[ndarray, "H W"], patch: int, reduction: Reduction = "majority"
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
    number = _patch_numbers(height, width, patch)
    if reduction == "majority":
        ids = _majority(superpixels, number)
    else:
        ids = np.bincount(number.reshape(-1), weights=superpixels.reshape(-1)).astype(np.int64) // patch**2
    return ids.reshape(height // patch, width // patch).astype(np.int32)


def _majority(superpixels: Integer[ndarray, "H W"], number: Int64[ndarray, "H W"]) -> Integer[ndarray, "P"]:
    """Most frequent id of each patch, the smallest of several."""
    known = None
    if superpixels.max() >= FEW:
        known, superpixels = np.unique(superpixels, return_inverse=True)
    count = int(superpixels.max()) + 1
    cells = superpixels.reshape(number.shape) + count * number
    votes = np.bincount(cells.reshape(-1), minlength=count * (int(number[-1, -1]) + 1)).reshape(-1, count)
    ids = votes.argmax(axis=1)  # the first of several, the smallest id
    return ids if known is None else known[ids]


@lru_cache(maxsize=8)
def _patch_numbers(height: int, width: int, patch: int) -> Int64[ndarray, "H W"]:
    """For each pixel, the number of its patch."""
    rows, columns = np.arange(height) // patch, np.arange(width) // patch
    return rows[:, None] * (width // patch) + columns
