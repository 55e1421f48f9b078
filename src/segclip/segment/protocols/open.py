"""The open protocol, for people: any labels, a background without a threshold, edges that follow the photo.

One class competition per region, against contrast words; the regions' soft assignment drawn over overlapping windows;
the result averaged over the photo's own superpixels. No step but the first depends on how many labels there are.

Axes: B windows, C centers, P patches, E embedding, K labels, N contrast words, J score columns, H W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from segclip.data.superpixels import without_gaps
from segclip.model.segclip import ImageOutput
from segclip.segment.windows import Windows, bilinear
from segclip.text.labels import singular
from segclip.text.prompts import OPEN_TEMPLATES

Background = Literal["auto"] | float | None
COLUMNS = 8  # drawn at once


@dataclass(frozen=True)
class OpenSettings:
    """Every constant of the protocol; none depends on the labels. `scales` was chosen on photos (docs/results.md).

    Attributes:
        scales: short sides the photo is encoded at, in units of the model's side, no photo being enlarged beyond 1;
            the scores are averaged.
        stride: of the windows, in units of their side.
        longest: the long side at most, in units of the model's side: bounds the work for a 1x4000 photo.
        superpixel_side: short side at which superpixels are computed, in pixels; smaller photos keep their size.
        superpixel_longest: long side there at most.
        superpixel_scale, superpixel_sigma, superpixel_min: of Felzenszwalb's method; finer than in training.
        vote: weight of a superpixel's mean score beside the pixel's own, so that small things do not vanish.
        too_near: a contrast word whose text is nearer than this to a label's (cosine around the contrast words' mean)
            does not compete.
        threshold: in 0..1: also background is where the best label's probability is below it, as if it were given
            as the background; None: the contrast words alone decide.
        templates: texts that a label or a contrast word is put into; their embeddings are averaged.
    """

    scales: tuple[float, ...] = (1.0, 2.0)
    stride: float = 0.5
    longest: float = 8.0
    superpixel_side: int = 480
    superpixel_longest: int = 2000
    superpixel_scale: float = 80.0
    superpixel_sigma: float = 0.8
    superpixel_min: int = 40
    vote: float = 0.7
    too_near: float = 0.6
    threshold: float | None = None
    templates: tuple[str, ...] = OPEN_TEMPLATES


SETTINGS = OpenSettings()


def cut_windows(photo: UInt8[ndarray, "H W 3"], side: int, settings: OpenSettings = SETTINGS) -> list[Windows]:
    """The photo at each scale, in overlapping windows of the model's `side`."""
    height, width = photo.shape[:2]
    shorts = {max(side, min(scale * side, height, width)) if scale > 1 else scale * side for scale in settings.scales}
    return [
        Windows.cut(
            _resize(photo, fitted(height, width, short, settings.longest * side)),
            side,
            max(1, int(settings.stride * side)),
        )
        for short in sorted(shorts)
    ]


def competitors(
    labels: Float[Tensor, "K E"],
    names: Sequence[str],
    contrast: Float[Tensor, "N E"],
    words: Sequence[str],
    settings: OpenSettings = SETTINGS,
) -> Float[Tensor, "_ E"]:
    """The contrast words that may compete: those that mean something else than every label.

    Text embeddings of any two words are alike; around their common mean they are not, so cosines are taken there.
    """
    if not len(contrast):
        return contrast
    center = F.normalize(contrast, dim=-1).mean(dim=0)
    around = [F.normalize(F.normalize(x, dim=-1) - center, dim=-1) for x in (contrast, labels)]
    far = (around[0] @ around[1].T).amax(dim=-1) <= settings.too_near
    kinds = [_kinds(name) for name in names]
    labels_and_kinds, whole = set().union(*kinds), {singular(name) for name in names}
    # "table" stands aside for the label "dining table", and "brick wall" for "wall".
    other = [singular(word) not in labels_and_kinds and not _kinds(word) & whole for word in words]
    return contrast[far & torch.tensor(other, device=far.device)]


def _kinds(name: str) -> set[str]:
    """The name and the thing it is a kind of, in the singular: "dining tables" -> dining table, table."""
    return {singular(name), singular(name.split(" of ")[0].split()[-1])}


@torch.inference_mode()
def label_photo(
    size: tuple[int, int],
    superpixels: Int[Tensor, "rows columns"],
    views: list[Windows],
    outputs: list[ImageOutput],
    labels: Float[Tensor, "K E"],
    contrast: Float[Tensor, "N E"],
    logit_scale: float,
    background: Background,
    settings: OpenSettings = SETTINGS,
) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
    """The label of each pixel (0 background, i the i-th label) and its score in 0..1.

    Args:
        size: height and width of the photo.
        superpixels: what `find_superpixels` gave for it.
        views, outputs: the photo at each scale, and what the model made of its windows.
        labels: an embedding per label.
        contrast: embeddings of the words that stand for "something else"; used unless background is None.
        logit_scale: the multiplier of the cosines.
        background: "auto": where a contrast word wins; a number: where the best label's probability is below it, the
            contrast words competing; None: nowhere.
    """
    tables, columns = _region_tables(outputs, labels, contrast, logit_scale, background)
    superpixels = superpixels.to(columns)  # its device, and the integers that torch adds up fastest by
    best, winner = _vote(superpixels, _scales(superpixels.shape, views, outputs, tables), settings.vote)
    found = columns[winner]
    if isinstance(background, float | int):
        below = best < background
        found, best = found.masked_fill(below, 0), torch.where(below, 1 - best, best)
    return _nearest(found, size), _nearest(best, size)


def _region_tables(
    outputs: list[ImageOutput],
    labels: Float[Tensor, "K E"],
    contrast: Float[Tensor, "N E"],
    logit_scale: float,
    background: Background,
) -> tuple[list[Float[Tensor, "_ C J"]], Int[Tensor, "J"]]:
    """Probability of each label that is some region's best, and their numbers; under "auto" the background first."""
    count = len(labels)
    text = F.normalize(labels if background is None else torch.cat([labels, contrast]), dim=-1)
    sizes = [len(output.regions) for output in outputs]
    regions = F.normalize(torch.cat([output.regions for output in outputs]), dim=-1)
    logits = logit_scale * regions @ text.T
    if len(contrast) > count:
        # Few labels that somebody asked for must not drown in many words: a label is held to be likelier than a word.
        # By how much was chosen on collages of training photos (docs/results.md).
        logits[..., :count] += math.log(len(contrast) / count) / 3
    chances = logits.softmax(dim=-1)
    named = chances[..., :count]
    winners = named.argmax(dim=-1).unique()
    table, columns = named[..., winners], winners + 1
    if background == "auto" and len(contrast):
        table = torch.cat([chances[..., count:].amax(dim=-1, keepdim=True), table], dim=-1)
        columns = torch.cat([columns.new_zeros(1), columns])
    return list(table.split(sizes)), columns


@dataclass(frozen=True)
class _Scale:
    """Scores of the photo at one scale: `down @ grid @ across.T` draws a column of them at the superpixels' size.

    Attributes:
        grid: (R,S,J), a value per patch, the patches of all windows in rows and columns.
        down, across: (h,R) and (w,S), bilinear; where windows overlap, their mean.
    """

    grid: Float[Tensor, "R S J"]
    down: Float[Tensor, "h R"]
    across: Float[Tensor, "w S"]

    def draw(self, columns: slice) -> Float[Tensor, "h _"]:
        """Some columns; a row has all of its pixels one after the other, and of each its columns."""
        return self.down @ (self.across @ self.grid[..., columns]).flatten(1)


def _scales(
    size: Sequence[int], views: list[Windows], outputs: list[ImageOutput], tables: list[Float[Tensor, "_ C J"]]
) -> list[_Scale]:
    """The photo at each scale, to be drawn at `size` by way of the first scale's size."""
    scales = []
    for view, output, table in zip(views, outputs, tables, strict=True):
        # Mixing scores by assignment and drawing them are both linear: mix at patches, which are few, then draw.
        grid = view.tile(torch.einsum("bcj,bcp->bjp", table, output.soft))
        axes = view.drawing(math.isqrt(output.soft.shape[-1]))
        to_size = [
            bilinear(first, length) @ (bilinear(own, first) @ drawn)
            for drawn, own, first, length in zip(axes, view.size, views[0].size, size, strict=True)
        ]
        scales.append(_Scale(grid.movedim(0, -1), *(axis.to(grid) for axis in to_size)))
    return scales


def _vote(
    superpixels: Int[Tensor, "h w"], scales: Sequence[_Scale], weight: float
) -> tuple[Float[Tensor, "h w"], Int[Tensor, "h w"]]:
    """Best score and its column, the mean over the scales and then each superpixel's mean having had their say."""
    ids, count = superpixels.flatten(), scales[0].grid.shape[-1]
    area = ids.bincount()[:, None]
    best = scales[0].grid.new_full((len(ids),), -1.0)
    winner = torch.zeros_like(ids)
    for first in range(0, count, COLUMNS):  # a few at a time, to stay small
        # A pixel's scores lie together: a column must cost little, there may be many.
        own = torch.stack([scale.draw(slice(first, first + COLUMNS)) for scale in scales]).mean(dim=0)
        own = own.view(len(ids), -1)
        mean = own.new_zeros(len(area), own.shape[1]).index_add_(0, ids, own).div_(area)
        score, column = own.lerp_(mean.index_select(0, ids), weight).max(dim=1)
        winner = torch.where(score > best, column + first, winner)
        best = torch.maximum(best, score)
    return best.clamp(0, 1).view(superpixels.shape), winner.view(superpixels.shape)


def find_superpixels(photo: UInt8[ndarray, "H W 3"], settings: OpenSettings = SETTINGS) -> Int[Tensor, "rows columns"]:
    """A superpixel id per pixel of the photo, scaled down: 0 to the number of superpixels - 1."""
    size = fitted(photo.shape[0], photo.shape[1], settings.superpixel_side, settings.superpixel_longest, grow=False)
    method = cv2.ximgproc.segmentation.createGraphSegmentation(
        settings.superpixel_sigma, settings.superpixel_scale, settings.superpixel_min
    )
    ids = method.processImage(_resize(photo, size))  # Felzenszwalb's; OpenCV's is 4 times as fast as scikit-image's
    return torch.from_numpy(without_gaps(np.asarray(ids)))


def fitted(height: int, width: int, short: float | int, longest: float | int, *, grow: bool = True) -> tuple[int, int]:
    """Height and width with the short side at `short`, the long side at most `longest`, the shape kept."""
    scale = min(short / min(height, width), longest / max(height, width))
    scale = scale if grow else min(scale, 1.0)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resize(photo: UInt8[ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[ndarray, "h w 3"]:
    """Antialiased, as the training crops are."""
    if photo.shape[:2] == size:
        return photo
    image = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image)


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (
        ((torch.arange(n, device=values.device) + 0.5) * (m / n)).long()
        for n, m in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]
