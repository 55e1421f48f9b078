"""Windows: a photo is cut into rectangles that are encoded in batches; their maps are put back together.

Axes: B windows, P patches, H W pixels, R S rows and columns of the photo's patches, J score columns.
"""

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

# Pixels encoded at once. On a CPU 4 to 8 windows of 224 x 224 were fastest, because of its caches (measured with
# ViT-B/16 and `mini`).
BATCH, GPU_BATCH = 8 * 224**2, 128 * 224**2


@dataclass(frozen=True)
class Windows:
    """A photo at working size, and the positions of its windows.

    Attributes:
        photo: RGB uint8 (H,W,3), 0-255.
        tops, lefts: offsets of the windows, in pixels of `photo`; there is one window for each pair, row by row.
        window: height and width of a window in pixels; a smaller photo is extended to it by reflection.
    """

    photo: UInt8[ndarray, "H W 3"]
    tops: list[int]
    lefts: list[int]
    window: tuple[int, int]

    @classmethod
    def cut(cls, photo: UInt8[ndarray, "H W 3"], window: tuple[int, int], stride: tuple[int, int]) -> "Windows":
        """Windows every `stride` pixels down and across; the last of a row or column is shifted back inside."""
        tops, lefts = (_starts(*axis) for axis in zip(photo.shape[:2], window, stride, strict=True))
        return cls(photo, tops, lefts, window)

    @property
    def boxes(self) -> list[tuple[int, int]]:
        """Top and left of each window."""
        return [(top, left) for top in self.tops for left in self.lefts]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photo at working size."""
        return self.photo.shape[0], self.photo.shape[1]

    def crops(self) -> Iterator[UInt8[ndarray, "_ _ 3"]]:
        """The pixels of each window."""
        missing = [(0, max(side - length, 0)) for side, length in zip(self.window, self.size, strict=True)]
        photo = np.pad(self.photo, (*missing, (0, 0)), mode="symmetric")
        for y, x in self.boxes:
            yield photo[y : y + self.window[0], x : x + self.window[1]]

    def crops_of(self, labels: Integer[ndarray, "H W"]) -> Iterator[Integer[ndarray, "_ _"]]:
        """The part of a photo's label map, which may have any size, in each window; without the reflected part."""
        rows, columns = (
            ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(self.size, labels.shape, strict=True)
        )
        small = labels[rows[:, None], columns]
        for y, x in self.boxes:
            yield small[y : y + self.window[0], x : x + self.window[1]]

    def average(self, maps: Float[Tensor, "B J _ _"]) -> Float[Tensor, "J H W"]:
        """One map per window -> one map of the photo, overlaps averaged."""
        height, width = self.size
        total, count = maps.new_zeros(maps.shape[1], height, width), maps.new_zeros(height, width)
        for (top, left), scores in zip(self.boxes, maps, strict=True):  # 3 to 6 times as fast as index_add_
            bottom, right = min(top + self.window[0], height), min(left + self.window[1], width)
            total[:, top:bottom, left:right] += scores[:, : bottom - top, : right - left]
            count[top:bottom, left:right] += 1
        return total.div_(count)

    def averaging(self, rows: int, columns: int) -> tuple[Float[Tensor, "H _"], Float[Tensor, "W _"]]:
        """The matrices that draw patches' values bilinearly and `average` them, down and across the photo.

        Args:
            rows, columns: of a window's patches; a matrix takes those of the windows one after the other.
        """
        height, width = self.size
        down = _averaging(rows, self.window[0], self.tops, height)
        return down, _averaging(columns, self.window[1], self.lefts, width)

    def blend(self, patches: Float[Tensor, "B P J"]) -> Float[Tensor, "R S J"]:
        """A value of each patch of each window -> of each patch of the photo; what lies in several windows is blended.

        A window counts the more, the farther the patch is from its border, so that no seam shows. Photo, windows and
        strides must be whole numbers of patches.
        """
        rows, columns = patch_grid(patches.shape[1], self.window)
        grids = patches.unflatten(1, (rows, columns))
        if len(grids) == 1:
            return grids[0]
        patch = self.window[0] // rows
        weight = (_tent(rows)[:, None] * _tent(columns)).to(grids)[..., None]
        total = grids.new_zeros(self.size[0] // patch, self.size[1] // patch, grids.shape[-1])
        weights = torch.zeros_like(total[..., :1])
        for (top, left), grid in zip(self.boxes, grids, strict=True):
            place = slice(top // patch, top // patch + rows), slice(left // patch, left // patch + columns)
            total[place] += weight * grid
            weights[place] += weight
        return total / weights


def patch_grid(patches: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches in a window of `size`, patches being squares."""
    height, width = size
    patch = (height * width / patches) ** 0.5
    rows, columns = round(height / patch), round(width / patch)
    if rows * columns != patches:
        raise ValueError(f"{patches} patches do not tile a window of {height}x{width}; give the size that was encoded")
    return rows, columns


def _averaging(n: int, side: int, starts: Sequence[int], length: int) -> Float[Tensor, "{length} _"]:
    each, total = bilinear(n, side), torch.zeros(length, len(starts), n)
    count = torch.zeros(length, 1)
    for number, start in enumerate(starts):
        end = min(start + side, length)
        total[start:end, number] = each[: end - start]
        count[start:end] += 1
    return total.flatten(1) / count


def _tent(length: int) -> Float[Tensor, "{length}"]:
    steps = torch.arange(1, length + 1)
    return torch.minimum(steps, steps.flip(0)).float()


def _starts(length: int, side: int, stride: int) -> list[int]:
    last = max(length - side, 0)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def encode_windows(
    encoder: Encoder, photos: Sequence[Windows], *, each: bool = False, offset: float = 0.0
) -> list[ImageOutput]:
    """Encode every window of every photo once, in batches that may span photos whose windows have the same shape.

    Args:
        encoder: encodes a batch.
        photos: cut into windows.
        each: whether to give an embedding and features of each patch too.
        offset: of the positions, where they are resized: see `segclip.model.towers.inputs.resize_positions`.

    Returns:
        One ImageOutput per photo, B being its windows.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for number, photo in enumerate(photos):
        alike.setdefault(photo.window, []).append(number)
    found: dict[int, ImageOutput] = {}
    for window, numbers in alike.items():
        crops = [crop for number in numbers for crop in photos[number].crops()]
        pixels = BATCH if encoder.device.type == "cpu" else GPU_BATCH
        size = max(1, pixels // (window[0] * window[1]))
        batches = (
            _stack(crops[i : i + size], pinned=encoder.device.type == "cuda") for i in range(0, len(crops), size)
        )
        outputs = ImageOutput.cat([encoder(batch, each=each, offset=offset) for batch in batches])
        found |= zip(numbers, outputs.split([len(photos[number].boxes) for number in numbers]), strict=True)
    return [found[number] for number in range(len(photos))]


def _stack(crops: Sequence[UInt8[ndarray, "h w 3"]], *, pinned: bool) -> UInt8[Tensor, "B h w 3"]:
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


def bilinear(n: int, length: int) -> Float[Tensor, "{length} {n}"]:
    """The matrix that resizes one axis of n values as `resize_map` does."""
    return F.interpolate(torch.eye(n)[None], length, mode="linear", align_corners=False)[0].T
