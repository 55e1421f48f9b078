"""Windows: a photo is cut into squares that are encoded in batches; their maps are put back together.

Axes: B windows, H W pixels, R S values down and across the tiles, J score columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from numpy import ndarray
from torch import Tensor

from segclip.model.outputs import ImageOutput
from segclip.segment.encoder import Encoder

# Windows encoded at once. On a CPU 4 to 8 were fastest, because of its caches (measured with ViT-B/16 and `mini`).
BATCH, GPU_BATCH = 8, 128


@dataclass(frozen=True)
class Windows:
    """A photo at working size, and the positions of its windows.

    Attributes:
        photo: RGB uint8 (H,W,3), 0-255.
        tops, lefts: offsets of the windows, in pixels of `photo`; there is one window for each pair, row by row.
        side: side of a window in pixels; a smaller photo is extended to it by reflection.
    """

    photo: UInt8[ndarray, "H W 3"]
    tops: list[int]
    lefts: list[int]
    side: int

    @classmethod
    def cut(cls, photo: UInt8[ndarray, "H W 3"], side: int, stride: int) -> "Windows":
        """Windows of `side` every `stride` pixels; the last of a row or column is shifted back inside."""
        tops, lefts = (_starts(length, side, stride) for length in photo.shape[:2])
        return cls(photo, tops, lefts, side)

    @property
    def boxes(self) -> list[tuple[int, int]]:
        """Top and left of each window."""
        return [(top, left) for top in self.tops for left in self.lefts]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photo at working size."""
        return self.photo.shape[0], self.photo.shape[1]

    def crops(self) -> Iterator[UInt8[ndarray, "side side 3"]]:
        """The pixels of each window."""
        height, width = self.size
        missing = (max(self.side - height, 0), max(self.side - width, 0))
        photo = np.pad(self.photo, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
        for y, x in self.boxes:
            yield photo[y : y + self.side, x : x + self.side]

    def crops_of(self, labels: Integer[ndarray, "H W"]) -> Iterator[Integer[ndarray, "_ _"]]:
        """The part of a photo's label map, which may have any size, in each window; without the reflected part."""
        rows, columns = (
            ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(self.size, labels.shape, strict=True)
        )
        small = labels[rows[:, None], columns]
        for y, x in self.boxes:
            yield small[y : y + self.side, x : x + self.side]

    def tile(self, maps: Float[Tensor, "B J _"]) -> Float[Tensor, "J R S"]:
        """The windows' maps, n x n values each, side by side in rows and columns; overlaps appear more than once."""
        n = math.isqrt(maps.shape[-1])
        squares = maps.view(len(self.tops), len(self.lefts), -1, n, n)
        return squares.permute(2, 0, 3, 1, 4).reshape(-1, len(self.tops) * n, len(self.lefts) * n)

    def drawing(self, n: int) -> tuple[Float[Tensor, "H R"], Float[Tensor, "W S"]]:
        """Matrices that resize what `tile` returns: `down @ tiles @ across.T` is the photo's map, overlaps averaged."""
        height, width = self.size
        return _draw_axis(self.tops, self.side, height, n), _draw_axis(self.lefts, self.side, width, n)

    def average(self, maps: Float[Tensor, "B J side side"]) -> Float[Tensor, "J H W"]:
        """One map per window -> one map of the photo, overlaps averaged."""
        height, width = self.size
        total, count = maps.new_zeros(maps.shape[1], height, width), maps.new_zeros(height, width)
        for (top, left), scores in zip(self.boxes, maps, strict=True):  # 3 to 6 times as fast as index_add_
            bottom, right = min(top + self.side, height), min(left + self.side, width)
            total[:, top:bottom, left:right] += scores[:, : bottom - top, : right - left]
            count[top:bottom, left:right] += 1
        return total.div_(count)


def _draw_axis(starts: list[int], side: int, length: int, n: int) -> Float[Tensor, "{length} _"]:
    """One axis of `Windows.drawing`: each window is resized bilinearly at its position."""
    pixels = torch.tensor(starts)[:, None] + torch.arange(side)
    drawn = torch.zeros(max(length, side), len(starts), n)
    drawn[pixels, torch.arange(len(starts))[:, None]] = bilinear(n, side)
    return (drawn.flatten(1) / pixels.flatten().bincount()[:, None])[:length]


def bilinear(n: int, length: int) -> Float[Tensor, "{length} {n}"]:
    """The matrix that resizes one axis of n values as `resize_map` does."""
    return F.interpolate(torch.eye(n)[None], length, mode="linear", align_corners=False)[0].T


def _starts(length: int, side: int, stride: int) -> list[int]:
    last = max(length - side, 0)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def encode_windows(encoder: Encoder, photos: Sequence[Windows]) -> list[ImageOutput]:
    """Encode every window of every photo once, in batches that may span photos.

    Returns:
        One ImageOutput per photo, B being its windows.
    """
    crops = [crop for photo in photos for crop in photo.crops()]
    on_gpu = encoder.device.type == "cuda"
    size = BATCH if encoder.device.type == "cpu" else GPU_BATCH
    batches = (_stack(crops[i : i + size], pinned=on_gpu) for i in range(0, len(crops), size))
    return ImageOutput.cat([encoder(batch) for batch in batches]).split([len(photo.boxes) for photo in photos])


def _stack(crops: Sequence[UInt8[ndarray, "side side 3"]], *, pinned: bool) -> UInt8[Tensor, "B side side 3"]:
    """Windows as a batch, in pinned memory if a GPU is to copy them while it encodes the batch before."""
    batch = torch.empty((len(crops), *crops[0].shape), dtype=torch.uint8, pin_memory=pinned)
    np.stack(crops, out=batch.numpy())
    return batch


def fit_size(
    height: int, width: int, short: float | int, longest: float | int, *, grow: bool = True
) -> tuple[int, int]:
    """Height and width with the short side at `short`, the long side at most `longest`, and the same aspect ratio."""
    scale = min(short / min(height, width), longest / max(height, width))
    scale = scale if grow else min(scale, 1.0)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_map(scores: Float[Tensor, "J h w"], size: tuple[int, int]) -> Float[Tensor, "J H W"]:
    """Bilinear, `align_corners=False`, never antialiased, as everywhere in the paper's protocol."""
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def resized_bands(
    scores: Float[Tensor, "J h w"], size: tuple[int, int], limit: int = 2**24
) -> Iterator[tuple[int, Float[Tensor, "J rows W"]]]:
    """`resize_map` a band of rows at a time, so that a large photo with many labels fits in memory.

    Yields:
        The band's first row, and its scores; at most about `limit` values at once.
    """
    height, width = size
    rows = max(1, limit // (len(scores) * max(width, scores.shape[2])))
    # The source row of an output row's center, as torch has it for align_corners=False.
    source = ((torch.arange(height, device=scores.device) + 0.5) * (scores.shape[1] / height) - 0.5).clamp(min=0)
    above = source.long().clamp(max=scores.shape[1] - 1)
    below = (above + 1).clamp(max=scores.shape[1] - 1)
    weight = (source - above).to(scores.dtype)[:, None]
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        lines = torch.lerp(scores[:, above[band]], scores[:, below[band]], weight[band])
        yield top, resize_map(lines, (lines.shape[1], width))
