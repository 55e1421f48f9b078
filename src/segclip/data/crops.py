"""The random crops of photos that training sees."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

CROP_SCALE = (0.5, 1.0)  # smallest and largest share of a photo's area
RATIO = (3 / 4, 4 / 3)  # width to height


@dataclass(frozen=True)
class Box:
    """A rectangle of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(
    height: int,
    width: int,
    generator: np.random.Generator,
    scale: tuple[float, float] = CROP_SCALE,
) -> Box:
    """A random box of a photo: area within `scale`, ratio within RATIO (log-uniform); the centre if ten draws fail.

    Args:
        height, width: of the photo.
        generator: what draws.
        scale: smallest and largest share of the photo's area.
    """
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w)
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop_photo(photo: UInt8[np.ndarray, "H W 3"], box: Box, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """`crop_image` for an array."""
    return crop_image(Image.fromarray(photo), box, side)


def crop_image(photo: Image.Image, box: Box, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Cut `box` out of an RGB photo and resize it to a square, bicubic."""
    cut = photo.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.array(cut.resize((side, side), Image.Resampling.BICUBIC))
