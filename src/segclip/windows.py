"""Windows: a photo is cut into squares of the model's own side, encoded in batches; maps are put back together.

Axes: B windows, H W pixels, C centers, P patches, E embedding, J score columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from numpy import ndarray
from torch import Tensor

from segclip.encoder import Encoder
from segclip.model.segclip import ImageOutput

# Windows encoded at once: on a CPU as many as its caches are quickest with (measured: a ViT-B/16 with 2 to 4).
BATCH, GPU_BATCH = 4, 128


@dataclass(frozen=True)
class Windows:
    """A photo at working size, and where its windows lie.

    Attributes:
        photo: RGB uint8 (H,W,3), 0-255.
        boxes: top and left of each window, in pixels of `photo`.
        side: side of a window in pixels; a photo that is smaller is reflected up to it.
    """

    photo: UInt8[ndarray, "H W 3"]
    boxes: list[tuple[int, int]]
    side: int

    @classmethod
    def cut(cls, photo: UInt8[ndarray, "H W 3"], side: int, stride: int) -> "Windows":
        """Windows of `side` every `stride` pixels; the last of a row or column is shifted back inside."""
        height, width = photo.shape[:2]
        boxes = [(y, x) for y in _starts(height, side, stride) for x in _starts(width, side, stride)]
        return cls(photo, boxes, side)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photo at working size."""
        return self.photo.shape[0], self.photo.shape[1]

    def crops(self) -> Iterator[UInt8[ndarray, "side side 3"]]:
        """The window's pixels, one window after the other."""
        height, width = self.size
        missing = (max(self.side - height, 0), max(self.side - width, 0))
        photo = np.pad(self.photo, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
        for y, x in self.boxes:
            yield photo[y : y + self.side, x : x + self.side]

    def crops_of(self, labels: Integer[ndarray, "H W"]) -> Iterator[Integer[ndarray, "_ _"]]:
        """What a label map of the whole photo, of any size, has in each window; without the reflected part."""
        rows, columns = (
            ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(self.size, labels.shape, strict=True)
        )
        small = labels[rows[:, None], columns]
        for y, x in self.boxes:
            yield small[y : y + self.side, x : x + self.side]

    def average(self, maps: Sequence[Float[Tensor, "J side side"]]) -> Float[Tensor, "J H W"]:
        """One map per window -> one map of the photo, overlaps averaged."""
        height, width = self.size
        total = maps[0].new_zeros(len(maps[0]), height, width)
        count = maps[0].new_zeros(height, width)
        for (y, x), scores in zip(self.boxes, maps, strict=True):
            bottom, right = min(y + self.side, height), min(x + self.side, width)
            total[:, y:bottom, x:right] += scores[:, : bottom - y, : right - x]
            count[y:bottom, x:right] += 1
        return total.div_(count)


def _starts(length: int, side: int, stride: int) -> list[int]:
    last = max(length - side, 0)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def encode_windows(encoder: Encoder, photos: Sequence[Windows]) -> list[ImageOutput]:
    """Encode every window of every photo, each once, in batches that cross photos.

    Returns:
        One ImageOutput per photo, B being its windows.
    """
    crops = [crop for photo in photos for crop in photo.crops()]
    size = BATCH if encoder.device.type == "cpu" else GPU_BATCH
    batches = (torch.from_numpy(np.stack(crops[i : i + size])) for i in range(0, len(crops), size))
    outputs = [encoder(batch) for batch in batches]
    counts = [len(photo.boxes) for photo in photos]
    parts = {f.name: torch.cat([getattr(o, f.name) for o in outputs]).split(counts) for f in fields(ImageOutput)}
    return [ImageOutput(**{name: part[i] for name, part in parts.items()}) for i in range(len(photos))]


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
