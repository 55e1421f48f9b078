"""Photo-caption pairs: a folder with `pairs.jsonl`, and the crops of photos that training sees."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SCALE = (0.5, 1.0)  # of the photo's area; arXiv 2211.14813, training
RATIO = (3 / 4, 4 / 3)  # width to height
LINE = '{"image": ..., "captions": [...]}'  # what a line holds


@dataclass(frozen=True)
class Pair:
    """A photo's path and its captions."""

    photo: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Box:
    """A rectangle of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int


def read_pairs(folder: Path) -> list[Pair]:
    """Read `pairs.jsonl`: a line a photo, with `image` (a path from this folder) and `captions`.

    Raises:
        ValueError: no such file, a line that is not of this form, or no line at all.
    """
    path = folder / "pairs.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a folder with it, a line a photo: {LINE}")
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            photo, captions = folder / record["image"], tuple(record["captions"])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: expected {LINE} ({error!r})") from error
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise ValueError(f"{path}, line {number}: captions {captions!r}; expected one or more texts")
        pairs.append(Pair(photo, captions))
    if not pairs:
        raise ValueError(f"{path}: no lines; expected one a photo")
    return pairs


def draw_crop(height: int, width: int, generator: np.random.Generator) -> Box:
    """A random box of a photo: area within SCALE, ratio within RATIO (log-uniform); the centre if ten draws fail."""
    for _ in range(10):
        area = height * width * generator.uniform(*SCALE)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w)
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop_photo(photo: UInt8[np.ndarray, "H W 3"], box: Box, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Cut `box` out of a photo and resize it to a square, bicubic."""
    cut = photo[box.top : box.top + box.height, box.left : box.left + box.width]
    return np.asarray(Image.fromarray(cut).resize((side, side), Image.Resampling.BICUBIC))
