"""The protocol of training-free dense heads, such as NACLIP's: cosines of patches, drawn at the photo's size.

Source: the repositories of arXiv 2404.08181 and 2312.01597, and the arrays that they compute (tests/golden).
Axes: B windows, P patches, W words, J some of them, K labels, H W pixels.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from segclip.data.photos import paper_size, resize_photo
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.pamr import refine
from segclip.segment.presence import Presence
from segclip.segment.protocols.checks import check_positive, check_share, check_templates
from segclip.segment.protocols.protocol import EmbeddedLabels, EmbedTexts, LabelMap
from segclip.segment.windows import Windows, patch_grid, resize_map, resized_bands
from segclip.text.prompts import IMAGENET_TEMPLATES

DRAWN = 64  # words that are drawn at the photo's size; of more, what the others say is one map


@dataclass(frozen=True)
class DenseProtocol:
    """The protocol, with the settings in which evaluations of this kind differ.

    Attributes:
        short: short side to which photos are scaled, in pixels.
        window: side of the windows, in pixels, a multiple of the model's patch; None: the photo whole.
        stride: of the windows, in pixels.
        two_steps: whether the map of a photo that is seen whole is drawn at the size the model sees, and from there at
            the photo's, as NACLIP's code does; the others draw it at once, and 0.05 to 0.4% of the pixels differ.
        longest: maximum long side, in pixels.
        logit_scale: the multiplier of the cosines, in place of the model's own.
        threshold: a pixel whose best label is less likely than that is background; in 0..1.
        area: a label that has no more than this share of all that is not background is left out.
        pamr: steps of refinement by the photo's colours (`segclip.segment.pamr`); 0: none. What it gains and costs,
            beside a vote of superpixels as `open` has it, benchmarks/refinement.py measures.
        dilations: of its neighbours, in pixels.
        templates: texts that a word is inserted into; the mean of their normalised embeddings is taken.
        published: settings of NACLIP for each benchmark that has its own; no setting itself.
    """

    short: int = 336
    window: int | None = 224
    stride: int = 112
    two_steps: bool = True
    longest: int = 2048
    logit_scale: float = 40.0
    threshold: float = 0.1
    area: float = 0.0
    pamr: int = 0
    dilations: tuple[int, ...] = (8, 16)
    templates: tuple[str, ...] = IMAGENET_TEMPLATES
    published: tuple[tuple[str, tuple[tuple[str, int | None], ...]], ...] = field(
        default=(("voc2012", (("window", None),)), ("cityscapes", (("short", 560),))), repr=False
    )

    needs_patches: ClassVar[bool] = True
    position_offset: ClassVar[float] = 0.1  # as the authors resize positions: `segclip.model.towers.inputs`
    thresholds_words: ClassVar[bool] = True  # the threshold counts, too, where words say what the background is

    def __post_init__(self) -> None:
        check_positive(self, "short", "window", "stride", "longest", "logit_scale")
        check_share(self, "threshold", "area")
        check_templates(self.templates)
        if self.pamr < 0 or not all(d > 0 for d in self.dilations):
            raise ValueError(f"pamr {self.pamr} with dilations {self.dilations}; give 0 or more, and numbers above 0")

    def cut_photo(self, photo: AnyPhoto, side: int, patch: int) -> list[Windows]:
        """The photo at one scale, in square windows or whole."""
        height, width = paper_size(photo.shape[0], photo.shape[1], self.short, self.longest)
        if self.window is None:
            height, width = (max(1, round(length / patch)) * patch for length in (height, width))
            return [Windows.cut(resize_photo(photo, (height, width)), (height, width), (height, width))]
        window = self.window, self.window
        return [Windows.cut(resize_photo(photo, (height, width)), window, (self.stride, self.stride))]

    def embed_labels(self, words: tuple[str, ...], embed: EmbedTexts) -> EmbeddedLabels:
        """The mean over the templates, of embeddings that are normalised one by one."""
        each = [embed(words, (template,)) for template in self.templates]
        return EmbeddedLabels(F.normalize(torch.stack(each).mean(dim=0), dim=-1))

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        """The label of each pixel, and how likely it is among all words; `presence` and the model's scale are not used.

        A label is as likely as its likeliest word. Under "auto" the background is what is less likely than the
        `threshold`.
        """
        average, chosen = self._map_words(photo, labels)
        threshold = self.threshold if background == "auto" else background
        found, score = self._choose(average, chosen, photo.size, threshold, labels)
        return LabelMap(found, score, score.new_ones(labels.count))

    def draw_label(self, photo: EncodedPhoto, labels: EmbeddedLabels, number: int) -> Float[Tensor, "H W"]:
        """How likely each pixel is of one label, by its number from 0; nowhere where other words leave it no chance."""
        average, chosen = self._map_words(photo, labels)
        score = average.new_zeros(photo.size)
        own = [column for column, owner in enumerate(chosen.owners or ()) if owner == number]
        for top, band in resized_bands(average, photo.size) if own else ():
            logits = self.logit_scale * band
            score[top : top + band.shape[1]] = (logits[own].amax(dim=0) - logits.logsumexp(dim=0)).exp()
        return score

    def for_benchmark(self, name: str) -> "DenseProtocol":
        """With NACLIP's settings for a benchmark."""
        return replace(self, **dict(dict(self.published).get(name, ())))

    def _map_words(self, photo: EncodedPhoto, labels: EmbeddedLabels) -> tuple[Float[Tensor, "J _ _"], EmbeddedLabels]:
        """Cosines of the words that may win, and as a last map what all others say; and these words."""
        windows, output = photo.single(patches=True)
        patches = output.patches
        if patches is None:  # of a grouping that knows regions alone
            patches = output.regions.take_along_dim(output.hard.argmax(dim=1)[..., None], dim=1)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(labels.labels, dim=-1).T
        cosines, kept = self._reduce(cosines)
        rows, columns = patch_grid(cosines.shape[1], windows.window)
        maps = cosines.mT.unflatten(-1, (rows, columns))
        if self.window is None and not self.two_steps:
            average = maps[0]
        else:
            average = windows.average(F.interpolate(maps, windows.window, mode="bilinear", align_corners=False))
        if self.pamr:
            average = self._refine(photo, average)
        return average, EmbeddedLabels(labels.labels[kept], owners=tuple(labels.owner()[kept].tolist()))

    def _reduce(self, cosines: Float[Tensor, "B P W"]) -> tuple[Float[Tensor, "B P J"], Int[Tensor, "n"]]:
        """The words that may win, and what all others say together as one more column; the numbers of these words."""
        count = cosines.shape[-1]
        if count <= DRAWN:
            return cosines, torch.arange(count, device=cosines.device)
        behind = (cosines - cosines.amax(dim=-1, keepdim=True)).amax(dim=(0, 1))
        kept = behind.topk(DRAWN).indices.sort().values
        others = torch.ones(count, dtype=torch.bool, device=cosines.device).index_fill(0, kept, False)
        rest = (self.logit_scale * cosines[..., others]).logsumexp(dim=-1, keepdim=True) / self.logit_scale
        return torch.cat([cosines[..., kept], rest], dim=-1), kept

    def _refine(self, photo: EncodedPhoto, maps: Float[Tensor, "J H W"]) -> Float[Tensor, "J _ _"]:
        """By the photo as the model sees it, at its own size."""
        pixels = torch.from_numpy(photo.windows[0].photo.copy()).to(maps).movedim(-1, 0)
        return refine(resize_map(maps, photo.size), resize_map(pixels, photo.size), self.pamr, self.dilations)

    def _choose(
        self,
        maps: Float[Tensor, "J h w"],
        chosen: EmbeddedLabels,
        size: tuple[int, int],
        threshold: float | None,
        labels: EmbeddedLabels,
    ) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
        """The likeliest label of each pixel, 0 where it is less likely than the threshold."""
        numbers = maps.new_tensor(sorted(set(chosen.owners or ())), dtype=torch.int64)
        position = {label: i for i, label in enumerate(numbers.tolist())}
        words = replace(chosen, owners=tuple(position[owner] for owner in chosen.owners or ()))
        left_out = torch.zeros(len(numbers), dtype=torch.bool, device=maps.device)
        found, score = self._draw(maps, words, size, left_out)
        if self.area:
            areas = found.flatten().bincount(minlength=len(numbers))
            things = areas if not labels.background else areas * (numbers < labels.count - 1)
            left_out = (areas <= self.area * things.sum()) & (things > 0)
            found, score = self._draw(maps, words, size, left_out)
        found = (numbers[found] + 1).masked_fill(score == 0, 0)  # where every label was left out
        return (found, score) if threshold is None else (found.masked_fill(score < threshold, 0), score)

    def _draw(
        self, maps: Float[Tensor, "J h w"], words: EmbeddedLabels, size: tuple[int, int], left_out: Bool[Tensor, "K"]
    ) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
        found = torch.empty(size, dtype=torch.int64, device=maps.device)
        score = maps.new_empty(size)
        for top, band in resized_bands(maps, size):
            logits = (self.logit_scale * band).movedim(0, -1)
            own = words.best(logits[..., : len(words.labels)]).masked_fill(left_out, -math.inf)
            best, winner = own.max(dim=-1)
            found[top : top + len(best)] = winner
            score[top : top + len(best)] = (best - logits.logsumexp(dim=-1)).exp()
        return found, score
