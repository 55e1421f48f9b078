"""The protocol of training-free dense heads, such as NACLIP's: cosines of patches, drawn at the photo's size.

Source: the repositories of arXiv 2404.08181 and 2312.01597, and the arrays that they compute (tests/golden).
Axes: B windows, P patches, W words, J some of them, K labels, H W pixels.
"""

import math
from collections.abc import Iterator
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
from segclip.segment.windows import Windows, bilinear, patch_grid, resize_map
from segclip.text.prompts import IMAGENET_TEMPLATES

DRAWN = 64  # words that are drawn at the photo's size; of more, what the others say is one map
BAND, GPU_BAND = 2**18, 2**24  # logits that are drawn at once; on a CPU so few that they stay in its cache


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
            beside a vote of superpixels as `open` has it: docs/evaluation.md.
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
        drawn = self._draw_words(photo, labels)
        threshold = self.threshold if background == "auto" else background
        found, score = self._choose(drawn, labels)
        if threshold is not None:
            found = found.masked_fill(score < threshold, 0)
        return LabelMap(found, score, score.new_ones(labels.count))

    def draw_label(self, photo: EncodedPhoto, labels: EmbeddedLabels, number: int) -> Float[Tensor, "H W"]:
        """How likely each pixel is of one label, by its number from 0; nowhere where other words leave it no chance."""
        drawn = self._draw_words(photo, labels)
        score = drawn.logits.new_zeros(drawn.size)
        own = drawn.owners == number
        for band, logits in drawn.bands() if own.any() else ():
            score[band] = (logits[:, : len(own)][:, own].amax(dim=1) - logits.logsumexp(dim=1)).exp()
        return score

    def for_benchmark(self, name: str) -> "DenseProtocol":
        """With NACLIP's settings for a benchmark."""
        return replace(self, **dict(dict(self.published).get(name, ())))

    def _draw_words(self, photo: EncodedPhoto, labels: EmbeddedLabels) -> "Drawing":
        """Logits of the words that may win. Bilinear resizing and averages are linear, so two matrices draw them."""
        windows, output = photo.single(patches=True)
        patches = output.patches
        if patches is None:  # of a grouping that knows regions alone
            patches = output.regions.take_along_dim(output.hard.argmax(dim=1)[..., None], dim=1)
        side = patch_grid(patches.shape[1], windows.window)
        words = self.logit_scale * F.normalize(labels.labels, dim=-1)
        logits, kept = self._reduce(words @ F.normalize(patches, dim=-1).flatten(0, 1).T)
        matrices = [bilinear(n, length) for n, length in zip(side, photo.size, strict=True)]
        if self.window is not None or self.two_steps:
            steps = zip(windows.size, photo.size, windows.averaging(*side), strict=True)
            matrices = [bilinear(middle, length) @ averaging for middle, length, averaging in steps]
        down, across = (matrix.to(logits) for matrix in matrices)
        grid = logits.unflatten(1, (len(windows.tops), len(windows.lefts), *side)).permute(1, 3, 0, 2, 4)
        drawn = Drawing(grid.flatten(3).flatten(0, 1) @ across.T, down, labels.owner()[kept])
        return self._refine(photo, drawn) if self.pamr else drawn

    def _reduce(self, logits: Float[Tensor, "W P"]) -> tuple[Float[Tensor, "J P"], Int[Tensor, "n"]]:
        """The words that may win, and what all others say together as one more row; the numbers of these words."""
        if len(logits) <= DRAWN:
            return logits, torch.arange(len(logits), device=logits.device)
        behind = (logits - logits.amax(dim=0)).amax(dim=1)
        kept = behind.topk(DRAWN).indices.sort().values
        rest = logits.index_fill(0, kept, -math.inf).logsumexp(dim=0, keepdim=True)
        return torch.cat([logits[kept], rest]), kept

    def _refine(self, photo: EncodedPhoto, drawn: "Drawing") -> "Drawing":
        """By the photo as the model sees it, at its own size."""
        maps = torch.cat([logits for _, logits in drawn.bands()]).transpose(0, 1)
        pixels = torch.from_numpy(photo.windows[0].photo.copy()).to(maps).movedim(-1, 0)
        refined = refine(maps, resize_map(pixels, photo.size), self.pamr, self.dilations)
        return replace(drawn, logits=refined.transpose(0, 1), down=None)

    def _choose(self, drawn: "Drawing", labels: EmbeddedLabels) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
        """The likeliest label of each pixel, numbered from 1, and how likely it is; 0 where every label is left out."""
        found, score = drawn.best()
        if not self.area:
            return found, score
        areas = found.flatten().bincount(minlength=labels.count + 1)
        things = areas.clone()
        if labels.background:
            things[-1] = 0
        return drawn.best((things > 0) & (areas <= self.area * things.sum()))


@dataclass(frozen=True)
class Drawing:
    """What words say, drawn across the photo, and how to draw it down.

    Attributes:
        logits: of the words, and perhaps in a last column what all others say; of each row of patches, or of pixels.
        down: the matrix that draws them; None: they are drawn.
        owners: the number of each word's label, from 0, ascending.
    """

    logits: Float[Tensor, "h J W"]
    down: Float[Tensor, "H h"] | None
    owners: Int[Tensor, "n"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width when drawn."""
        return len(self.logits if self.down is None else self.down), self.logits.shape[2]

    def bands(self) -> Iterator[tuple[slice, Float[Tensor, "rows J W"]]]:
        """Some rows of pixels after the others, and the logits there."""
        limit = BAND if self.logits.device.type == "cpu" else GPU_BAND
        step = max(1, limit // self.logits[0].numel())
        for top in range(0, self.size[0], step):
            band = slice(top, top + step)
            if self.down is None:
                yield band, self.logits[band]
            else:
                near = self.down[band].any(dim=0)  # rows of patches around
                yield band, torch.tensordot(self.down[band, near], self.logits[near], dims=1)

    def best(self, left_out: Bool[Tensor, "_"] | None = None) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
        """The number from 1 of each pixel's likeliest label, and how likely it is; 0 where every label is left out.

        Args:
            left_out: whether a label is, by its number from 1. What its words say counts nevertheless.
        """
        found = torch.empty(self.size, dtype=torch.int64, device=self.logits.device)
        score = self.logits.new_empty(self.size)
        numbers = self.owners + 1
        for band, logits in self.bands():
            own = logits[:, : len(numbers)]
            if left_out is not None:
                own = own.masked_fill(left_out[numbers][:, None], -math.inf)
            best, word = own.max(dim=1, keepdim=True)
            found[band] = numbers[word[:, 0]].masked_fill_(best[:, 0] == -math.inf, 0)
            score[band] = (logits - best).exp_().sum(dim=1).reciprocal_()
        return found, score
