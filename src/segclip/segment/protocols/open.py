"""The open protocol, for everyday use: any labels, no threshold for the background, edges that follow the photo.

For each region, labels compete with contrast words; the regions' scores are drawn by soft assignment in overlapping
windows, then averaged over the photo's superpixels. Only the first step depends on the number of labels.

Axes: B windows, C centers, P patches, E embedding, K labels, N contrast words, J score columns, H W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from segclip.data.superpixels import without_gaps
from segclip.model.segclip import ImageOutput
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols.checks import check_positive, check_share, check_templates
from segclip.segment.protocols.protocol import EmbeddedLabels, EmbedTexts, LabelMap
from segclip.segment.windows import Windows, bilinear, fit_size
from segclip.text.contrast_words import CONTRAST_WORDS
from segclip.text.labels import singular
from segclip.text.prompts import OPEN_TEMPLATES

COLUMNS = 8  # score columns drawn at once


@dataclass(frozen=True)
class OpenProtocol:
    """The protocol with its settings, none of which depends on the labels.

    `scales` was chosen on photos (docs/results.md).

    Attributes:
        scales: short sides at which the photo is encoded, in units of the model's side; scores are averaged. No photo
            is enlarged beyond 1.
        stride: of the windows, in units of their side.
        longest: maximum long side, in units of the model's side, which bounds the work for a 1x4000 photo.
        superpixel_side: short side at which superpixels are computed, in pixels; smaller photos keep their size.
        superpixel_longest: maximum long side for superpixels, in pixels.
        superpixel_scale, superpixel_sigma, superpixel_min: of Felzenszwalb's method; finer than in training.
        vote: weight of a superpixel's mean score; the rest is the pixel's own, so that small things do not vanish.
        too_near: a contrast word does not compete if its text is nearer than this to a label's (cosine around the
            contrast words' mean).
        threshold: in 0..1: under "auto", pixels whose best label's probability is below it are background, as if it
            had been given as `background`; None: the contrast words decide.
        templates: texts that a label or contrast word is inserted into; their embeddings are averaged.
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

    needs_names: ClassVar[bool] = True  # which contrast words compete depends on them

    def __post_init__(self) -> None:
        check_positive(self, "scales", "stride", "longest", "superpixel_side", "superpixel_longest")
        check_positive(self, "superpixel_scale", "superpixel_sigma", "superpixel_min")
        check_share(self, "vote", "too_near", "threshold")
        check_templates(self.templates)

    def cut_photo(self, photo: AnyPhoto, side: int) -> list[Windows]:
        """The photo at each scale, in overlapping windows of the model's `side`."""
        height, width = photo.shape[:2]
        shorts = {max(side, min(scale * side, height, width)) if scale > 1 else scale * side for scale in self.scales}
        sizes = [fit_size(height, width, short, self.longest * side) for short in sorted(shorts)]
        return [Windows.cut(_resize(photo, size), side, max(1, int(self.stride * side))) for size in sizes]

    def embed_labels(self, names: tuple[str, ...], embed: EmbedTexts) -> EmbeddedLabels:
        """The labels, and the contrast words that mean something else than all of them."""
        labels, contrast = embed(names, self.templates), embed(CONTRAST_WORDS, self.templates)
        return EmbeddedLabels(labels, contrast[_compete(CONTRAST_WORDS, contrast, names, labels, self.too_near)])

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        """The label of each pixel.

        Args:
            photo: an encoded photo.
            labels: with contrast words for "something else", which are used unless background is None.
            background: "auto": where a contrast word wins, or below the `threshold` if there is one; a number: where
                the best label's probability is below it, with contrast words competing; None: nowhere.
            presence: changes nothing: every label is taken to be in the photo.
            scale: the multiplier of the cosines.
        """
        if background == "auto" and self.threshold is not None:
            background = self.threshold
        tables, columns = _region_tables(photo.outputs, labels, scale, background)
        # On the device of the scores, and as int64, the fastest index for torch's sums.
        superpixels = photo.once(self.find_superpixels).to(columns)
        best, winner = _vote(superpixels, _scales(superpixels.shape, photo.windows, photo.outputs, tables), self.vote)
        found = columns[winner]
        if isinstance(background, float | int):
            below = best < background
            found, best = found.masked_fill(below, 0), torch.where(below, 1 - best, best)
        return LabelMap(_nearest(found, photo.size), _nearest(best, photo.size), best.new_ones(len(labels.labels)))

    def for_benchmark(self, name: str) -> "OpenProtocol":
        """Itself: no setting was chosen for a benchmark."""
        return self

    def find_superpixels(self, photo: AnyPhoto) -> Int[Tensor, "rows columns"]:
        """A superpixel id per pixel of the photo, scaled down: 0 to the number of superpixels - 1."""
        size = fit_size(photo.shape[0], photo.shape[1], self.superpixel_side, self.superpixel_longest, grow=False)
        method = cv2.ximgproc.segmentation.createGraphSegmentation(
            self.superpixel_sigma, self.superpixel_scale, self.superpixel_min
        )
        ids = method.processImage(_resize(photo, size))  # Felzenszwalb's; OpenCV is 4 times as fast as scikit-image
        return torch.from_numpy(without_gaps(np.asarray(ids)))


def _compete(
    words: Sequence[str],
    contrast: Float[Tensor, "N E"],
    names: Sequence[str],
    labels: Float[Tensor, "K E"],
    too_near: float,
) -> Bool[Tensor, "N"]:
    """Which contrast words mean something else than every label.

    Text embeddings of any two words are similar, but less so after subtracting their mean, so cosines are taken then.
    """
    mean = F.normalize(contrast, dim=-1).mean(dim=0)
    around = [F.normalize(F.normalize(x, dim=-1) - mean, dim=-1) for x in (contrast, labels)]
    far = (around[0] @ around[1].T).amax(dim=-1) <= too_near
    kinds = [_kinds(name) for name in names]
    labels_and_kinds, whole = set().union(*kinds), {singular(name) for name in names}
    # "table" does not compete with the label "dining table", nor does "brick wall" with "wall".
    different = [singular(word) not in labels_and_kinds and not _kinds(word) & whole for word in words]
    return far & torch.tensor(different, device=far.device)


def _kinds(name: str) -> set[str]:
    """The name and what it is a kind of, in the singular: "dining tables" -> dining table, table."""
    return {singular(name), singular(name.split(" of ")[0].split()[-1])}


def _region_tables(
    outputs: list[ImageOutput], labels: EmbeddedLabels, scale: float, background: Background
) -> tuple[list[Float[Tensor, "_ C J"]], Int[Tensor, "J"]]:
    """Probabilities of the labels that are some region's best, and their indices; under "auto" the background first."""
    count, words = len(labels.labels), len(labels.contrast)
    text = F.normalize(labels.labels if background is None else torch.cat([labels.labels, labels.contrast]), dim=-1)
    sizes = [len(output.regions) for output in outputs]
    regions = F.normalize(torch.cat([output.regions for output in outputs]), dim=-1)
    logits = scale * regions @ text.T
    if words > count:
        # A few labels must not be outnumbered by many contrast words, so each label gets a higher prior. How much
        # higher was chosen on collages of training photos (docs/results.md).
        logits[..., :count] += math.log(words / count) / 3
    probabilities = logits.softmax(dim=-1)
    named = probabilities[..., :count]
    winners = named.argmax(dim=-1).unique()
    table, columns = named[..., winners], winners + 1
    if background == "auto" and words:
        table = torch.cat([probabilities[..., count:].amax(dim=-1, keepdim=True), table], dim=-1)
        columns = torch.cat([columns.new_zeros(1), columns])
    return list(table.split(sizes)), columns


@dataclass(frozen=True)
class _Scale:
    """Scores of the photo at one scale; `down @ grid @ across.T` draws a score column at the superpixels' size.

    Attributes:
        grid: (R,S,J), the scores of the patches of all windows, in rows and columns.
        down, across: (h,R) and (w,S), which interpolate bilinearly and average overlapping windows.
    """

    grid: Float[Tensor, "R S J"]
    down: Float[Tensor, "h R"]
    across: Float[Tensor, "w S"]

    def draw(self, columns: slice) -> Float[Tensor, "h _"]:
        """Some score columns; a row of the result holds its pixels one after the other, each with its columns."""
        return self.down @ (self.across @ self.grid[..., columns]).flatten(1)


def _scales(
    size: Sequence[int], photo: list[Windows], outputs: list[ImageOutput], tables: list[Float[Tensor, "_ C J"]]
) -> list[_Scale]:
    """The photo at each scale, to be drawn at `size` via the size of the first scale."""
    scales = []
    for windows, output, table in zip(photo, outputs, tables, strict=True):
        # Mixing scores by assignment and drawing them are both linear: mix at patches, which are few, then draw.
        grid = windows.tile(torch.einsum("bcj,bcp->bjp", table, output.soft))
        axes = windows.drawing(math.isqrt(output.soft.shape[-1]))
        to_size = [
            bilinear(first, length) @ (bilinear(working, first) @ drawn)
            for drawn, working, first, length in zip(axes, windows.size, photo[0].size, size, strict=True)
        ]
        scales.append(_Scale(grid.movedim(0, -1), *(axis.to(grid) for axis in to_size)))
    return scales


def _vote(
    superpixels: Int[Tensor, "h w"], scales: Sequence[_Scale], weight: float
) -> tuple[Float[Tensor, "h w"], Int[Tensor, "h w"]]:
    """Best score and its column, from the mean over the scales, mixed with each superpixel's mean by `weight`."""
    ids, count = superpixels.flatten(), scales[0].grid.shape[-1]
    area = ids.bincount()[:, None]
    best = scales[0].grid.new_full((len(ids),), -1.0)
    winner = torch.zeros_like(ids)
    for first in range(0, count, COLUMNS):  # a few at a time, to save memory
        # A pixel's scores are adjacent in memory, which is faster; there may be many columns.
        scores = torch.stack([scale.draw(slice(first, first + COLUMNS)) for scale in scales]).mean(dim=0)
        scores = scores.view(len(ids), -1)
        mean = scores.new_zeros(len(area), scores.shape[1]).index_add_(0, ids, scores).div_(area)
        score, column = scores.lerp_(mean.index_select(0, ids), weight).max(dim=1)
        winner = torch.where(score > best, column + first, winner)
        best = torch.maximum(best, score)
    return best.clamp(0, 1).view(superpixels.shape), winner.view(superpixels.shape)


def _resize(photo: UInt8[ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[ndarray, "h w 3"]:
    """Antialiased, like the training crops."""
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
