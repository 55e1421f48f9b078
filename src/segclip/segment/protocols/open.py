"""The open protocol, for everyday use: any labels, each found or said to be absent, edges that follow the photo.

The photo is encoded whole, at its own shape. Which labels are in it at all, its embedding says. Where a label is best
said, regions and patches say; how far it extends from there, the likeness of the trunk's features says. Edges are
those of superpixels.

Axes: B windows, C centers, P patches, R S rows and columns of the photo's patches, D width, E embedding, K labels,
N reference words, J labels that are the best one somewhere, H W pixels of the photo, h w pixels of its superpixels.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from segclip.data.superpixels import without_gaps
from segclip.model.outputs import ImageOutput
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols.checks import check_positive, check_share, check_templates
from segclip.segment.protocols.protocol import EmbeddedLabels, EmbedTexts, LabelMap
from segclip.segment.windows import Windows, bilinear, fit_size
from segclip.text.prompts import OPEN_TEMPLATES
from segclip.text.reference_words import REFERENCE_WORDS

COLUMNS = 8  # labels drawn at once
FEW = 10  # labels; among more, each must stand out further
STEEPNESS = 2.0  # of presence around its bar, per deviation of the reference words
TINY = 1e-6
OUTSIDE = 1e4  # more than any two logits differ
STEPS = 24  # of spreading; with the default `spread`, what would come later weighs 0.85^24 = 0.02 in all


@dataclass(frozen=True)
class OpenProtocol:
    """The protocol with its settings, none of which depends on the labels.

    How they were chosen: docs/lab-notes.md.

    Attributes:
        scale: short side at which the photo is encoded, in units of the model's side; no photo is enlarged beyond 1.
        longest: maximum long side, in the same units, which bounds the work for a 1x4000 photo.
        window: maximum long side of one pass, in the same units; longer photos take several, overlapping by half.
        everywhere: share of a label's mean logit in the photo that is taken off its logits, as if every label were
            there. What is said of a label everywhere tells how common its word or what the scene is, not where it is.
        whole: weight of what the whole photo says of a label, among so many labels that few can be there. It replaces
            `everywhere` by degrees: ten labels or fewer have none of it, 20 half of both.
        patch_weight: weight of what a patch itself says of a label; the rest is what its region says. Of a model whose
            patches have no embeddings, regions say all.
        absent: share of the labels that are not in a photo that are to be found absent, as they stand out no further
            than words in general do; of more than ten labels so many that no more of them pass than of ten.
        behind: a label is absent, too, if the whole photo's logit of it is this far behind that of the best label.
        spread: share of a patch's logits that comes from the patches that are like it; 0 spreads nothing.
        power: of that likeness, a cosine: the higher, the fewer patches are alike.
        level: where a label ends, between the lowest (0) and the highest (1) of its spread logits in the photo.
        superpixel_side: short side at which superpixels are computed, in pixels; smaller photos keep their size.
        superpixel_longest: maximum long side for superpixels, in pixels.
        superpixel_scale, superpixel_sigma, superpixel_min: of Felzenszwalb's method; finer than in training.
        vote: weight of a superpixel's mean logits; the rest is the pixel's own, so that small things do not vanish.
        templates: texts that a label is inserted into; their embeddings are averaged.
    """

    scale: float = 1.5
    longest: float = 8.0
    window: float = 4.0
    everywhere: float = 0.7
    whole: float = 0.3
    patch_weight: float = 0.8
    absent: float = 0.7
    behind: float = 2.9
    spread: float = 0.85
    power: float = 4.0
    level: float = 0.6
    superpixel_side: int = 480
    superpixel_longest: int = 2000
    superpixel_scale: float = 80.0
    superpixel_sigma: float = 0.8
    superpixel_min: int = 40
    vote: float = 0.8
    templates: tuple[str, ...] = OPEN_TEMPLATES

    needs_patches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self, "scale", "longest", "window", "behind", "power", "superpixel_side", "superpixel_longest")
        check_positive(self, "superpixel_scale", "superpixel_sigma", "superpixel_min")
        check_share(self, "everywhere", "patch_weight", "absent", "spread", "level", "vote")
        check_templates(self.templates)

    def cut_photo(self, photo: AnyPhoto, side: int, patch: int) -> list[Windows]:
        """The whole photo as one window, in whole patches; a photo longer than `window` as several."""
        height, width = photo.shape[:2]
        short = self.scale * side
        if self.scale > 1:
            short = min(short, max(side, min(height, width)))
        fitted = fit_size(height, width, short, self.longest * side)
        rows, columns = (max(1, round(length / patch)) for length in fitted)
        most = max(2, round(self.window * side / patch))
        window = min(rows, most), min(columns, most)
        stride = tuple(length if length < most else most // 2 for length in window)
        resized = _resize(photo, (rows * patch, columns * patch))
        return [Windows.cut(resized, (window[0] * patch, window[1] * patch), (stride[0] * patch, stride[1] * patch))]

    def embed_labels(self, words: tuple[str, ...], embed: EmbedTexts) -> EmbeddedLabels:
        """The labels' words, and the reference words."""
        return EmbeddedLabels(embed(words, self.templates), embed(REFERENCE_WORDS, self.templates))

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        """The label of each pixel, and how surely it is within the label's extent.

        Args:
            photo: an encoded photo.
            labels: with reference words.
            background: "auto": beyond the extent of every label; a number: where it is less sure that a pixel is within
                the best label's; None: nowhere, and no label is left out.
            presence: "auto": a label whose presence is below 0.5 is left out; None: none is.
            scale: the multiplier of the cosines.
        """
        windows, output = photo.single(patches=True)
        assert labels.reference is not None
        whole, general = (
            scale * _cosines(output.embedding, one).amax(dim=0) for one in (labels.labels, labels.reference)
        )
        whole = labels.best(whole)
        there = whole.new_ones(len(whole)) if presence is None else self._presence(whole, general)
        kept = torch.ones_like(there) if background is None else there >= 0.5
        kept = kept.nonzero()[:, 0]
        if not len(kept):
            nothing = torch.zeros(photo.size, dtype=torch.int64, device=whole.device)
            return LabelMap(nothing, there.new_ones(photo.size), there)

        own = self._logits(windows, output, labels.only(kept), scale)
        many = 1 - min(1, FEW / len(there))
        own = own - (1 - many) * self.everywhere * own.mean(dim=(0, 1)) + many * self.whole * whole[kept]
        best = own.flatten(0, 1).argmax(dim=-1).unique()
        own, kept = own[..., best], kept[best]
        extent = self._spread(photo, own)
        low, high = torch.quantile(extent.flatten(0, 1), own.new_tensor([0.01, 0.99]), dim=0)
        extent = extent - torch.lerp(low, high, self.level)

        superpixels = photo.once(self.find_superpixels).to(kept)
        winner, inside = _vote(superpixels, own, extent, self.vote, beyond=background is None)
        found, score = kept[winner] + 1, inside.sigmoid()
        if background is not None:
            least = 0.5 if background == "auto" else background
            found, score = found.masked_fill(score < least, 0), torch.where(score < least, 1 - score, score)
        return LabelMap(_nearest(found, photo.size), _nearest(score, photo.size), there)

    def for_benchmark(self, name: str) -> "OpenProtocol":
        """Itself: no setting was chosen for a benchmark."""
        return self

    def find_superpixels(self, photo: EncodedPhoto) -> Int[Tensor, "h w"]:
        """A superpixel id per pixel of the photo, scaled down: 0 to the number of superpixels - 1."""
        size = fit_size(*photo.size, self.superpixel_side, self.superpixel_longest, grow=False)
        method = cv2.ximgproc.segmentation.createGraphSegmentation(
            self.superpixel_sigma, self.superpixel_scale, self.superpixel_min
        )
        ids = method.processImage(_resize(photo.photo, size))  # OpenCV's is faster than scikit-image's
        return torch.from_numpy(without_gaps(np.asarray(ids)))

    def find_likeness(self, photo: EncodedPhoto) -> Float[Tensor, "P P"]:
        """How much of each patch's share comes from each patch of the photo; rows sum to 1."""
        windows, output = photo.single(patches=True)
        assert output.features is not None
        features = windows.blend(output.features).flatten(0, 1)
        features = F.normalize(features, dim=-1)
        likeness = (features @ features.T).clamp_(min=0).pow_(self.power)
        likeness.fill_diagonal_(1.0)  # also where a patch is like none, as in a blank photo
        return likeness.div_(likeness.sum(dim=1, keepdim=True))

    def _presence(self, whole: Float[Tensor, "K"], general: Float[Tensor, "N"]) -> Float[Tensor, "K"]:
        """How likely each label is in the photo, by what the whole photo says of it and of words in general."""
        passing = (1 - self.absent) * min(1, FEW / len(whole))
        bar = NormalDist().inv_cdf(1 - passing)
        standing = (whole - general.mean()) / general.std().clamp(min=TINY)
        return torch.minimum(STEEPNESS * (standing - bar), whole - whole.max() + self.behind).sigmoid()

    def _logits(
        self, windows: Windows, output: ImageOutput, labels: EmbeddedLabels, scale: float
    ) -> Float[Tensor, "R S K"]:
        """Of each patch: its own and its region's, where patches have their own; of a label's best word."""
        cosines = _cosines(output.regions, labels.labels)
        cosines = cosines.take_along_dim(output.hard.argmax(dim=1)[..., None], dim=1)
        if output.patches is not None:
            cosines = torch.lerp(cosines, _cosines(output.patches, labels.labels), self.patch_weight)
        return labels.best(scale * windows.blend(cosines))

    def _spread(self, photo: EncodedPhoto, logits: Float[Tensor, "R S J"]) -> Float[Tensor, "R S J"]:
        """Logits after each patch has asked the patches that are like it, and these theirs (a random walk)."""
        if not self.spread:
            return logits
        likeness, own = photo.once(self.find_likeness), logits.flatten(0, 1)
        spread = own
        for _ in range(STEPS):
            spread = torch.lerp(own, likeness @ spread, self.spread)
        return spread.view_as(logits)


def _cosines(x: Float[Tensor, "*batch E"], labels: Float[Tensor, "K E"]) -> Float[Tensor, "*batch K"]:
    return F.normalize(x, dim=-1) @ F.normalize(labels, dim=-1).T


def _vote(
    superpixels: Int[Tensor, "h w"],
    own: Float[Tensor, "R S J"],
    extent: Float[Tensor, "R S J"],
    weight: float,
    *,
    beyond: bool,
) -> tuple[Int[Tensor, "h w"], Float[Tensor, "h w"]]:
    """The label with the highest logit of its own, drawn at the superpixels' size, and its value of `extent`.

    A pixel's values are mixed with its superpixel's means by `weight`. Beyond its extent, below 0, a label wins only
    where no other is within its own; with `beyond`, as well as any.
    """
    down, across = (bilinear(n, length).to(own) for n, length in zip(own.shape[:2], superpixels.shape, strict=True))
    ids = superpixels.flatten()
    area = ids.bincount()[:, None]

    def draw(values: Float[Tensor, "R S _"]) -> Float[Tensor, "n _"]:
        # A pixel's values are adjacent in memory, which is faster; there may be many labels.
        drawn = (down @ (across @ values).flatten(1)).view(len(ids), -1)
        means = drawn.new_zeros(len(area), drawn.shape[1]).index_add_(0, ids, drawn).div_(area)
        return drawn.lerp_(means.index_select(0, ids), weight)

    best = own.new_full((len(ids),), -math.inf)
    winner, inside = torch.zeros_like(ids), torch.zeros_like(best)
    for first in range(0, own.shape[-1], COLUMNS):  # a few at a time, to save memory
        some = slice(first, first + COLUMNS)
        logits, extents = draw(own[..., some]), draw(extent[..., some])
        if not beyond:
            logits = torch.where(extents >= 0, logits, logits - OUTSIDE)
        logit, column = logits.max(dim=1)
        better = logit > best
        best = torch.where(better, logit, best)
        winner = torch.where(better, column + first, winner)
        inside = torch.where(better, extents.gather(1, column[:, None])[:, 0], inside)
    return winner.view(superpixels.shape), inside.view(superpixels.shape)


def _resize(photo: UInt8[ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[ndarray, "h w 3"]:
    """Antialiased, like the training crops."""
    if photo.shape[:2] == size:
        return photo
    image = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image)


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map without mixing its values."""
    rows, columns = (
        ((torch.arange(n, device=values.device) + 0.5) * (m / n)).long()
        for n, m in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]
