"""The paper's protocol, exactly: regions x classes -> scores per pixel.

Source: arXiv 2211.14813, section 4, and the arrays that its authors' code computes (tests/golden).
Axes: B windows, C centers, P patches, E embedding, K classes, J score columns, h w pixels.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from segclip.data.photos import paper_size, resize_photo
from segclip.model.outputs import ImageOutput, is_identity
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols.checks import check_positive, check_share, check_templates
from segclip.segment.protocols.protocol import EmbeddedLabels, EmbedTexts, LabelMap
from segclip.segment.windows import Windows, patch_grid, resized_bands
from segclip.text.prompts import PAPER_TEMPLATES

KEPT = 5  # best classes of the whole window, from which its regions may choose


@dataclass(frozen=True)
class PaperProtocol:
    """The protocol, with the settings in which evaluations of this kind differ.

    Attributes:
        short: short side to which photos are scaled, in pixels; None: the model's side.
        window: side of the windows, in pixels, a multiple of the model's patch; None: the model's side.
        stride: of the windows, in pixels; None: their side.
        longest: maximum long side, in pixels.
        kept: number of best classes of the whole window, from which its regions may choose.
        threshold: a pixel with a lower score is background, unless there is none; in 0..1. The default is the paper's
            for COCO-Object, the middle one of its three.
        templates: texts that a label is inserted into; their embeddings are averaged.
        published: the published threshold for each benchmark that has one; not a setting.
    """

    short: int | None = None
    window: int | None = None
    stride: int | None = None
    longest: int = 2048
    kept: int = KEPT
    threshold: float = 0.65
    templates: tuple[str, ...] = PAPER_TEMPLATES
    published: tuple[tuple[str, float], ...] = field(
        default=(("voc2012", 0.80), ("context60", 0.25), ("coco-object", 0.65)), repr=False
    )

    needs_patches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(self, "short", "window", "stride", "longest", "kept")
        check_share(self, "threshold")
        check_templates(self.templates)

    def cut_photo(self, photo: AnyPhoto, side: int, patch: int) -> list[Windows]:
        """The photo at one scale, in square windows."""
        size = paper_size(photo.shape[0], photo.shape[1], self.short or side, self.longest)
        window = self.window or side
        stride = self.stride or window
        return [Windows.cut(resize_photo(photo, size), (window, window), (stride, stride))]

    def embed_labels(self, words: tuple[str, ...], embed: EmbedTexts) -> EmbeddedLabels:
        """The mean over the templates."""
        return EmbeddedLabels(embed(words, self.templates))

    def label_photo(
        self, photo: EncodedPhoto, labels: EmbeddedLabels, background: Background, presence: Presence, scale: float
    ) -> LabelMap:
        """The label of each pixel and its score; under "auto" the background is what scores below the `threshold`.

        Words compete, whichever label they mean. One that no window keeps scores 0 everywhere and is left out, leaving
        at most `kept` columns per window. The paper takes every class to be in the photo, so `presence` changes
        nothing.
        """
        windows, output = photo.single(patches=False)
        threshold = self.threshold if background == "auto" else background
        table = region_scores(output, labels.labels, scale, threshold, self.kept)
        used = (table > 0).flatten(0, 1).any(dim=0)
        used[0] = True  # the first wins where all are 0, as it would with all columns
        columns = used.nonzero()[:, 0]
        owner = region_owner(output, windows.window)
        average = windows.average(_paint(table[..., columns], owner))

        found = torch.empty(photo.size, dtype=torch.int64, device=average.device)
        scores = average.new_empty(photo.size)
        for top, band in resized_bands(average, photo.size):
            best, winner = band.max(dim=0)
            found[top : top + len(best)] = columns[winner]
            scores[top : top + len(best)] = best
        label = F.pad(labels.owner() + 1, (int(threshold is not None), 0))  # of each column
        return LabelMap(label[found], scores, scores.new_ones(labels.count))

    def for_benchmark(self, name: str) -> "PaperProtocol":
        """With the threshold published for a benchmark, if there is one."""
        return replace(self, threshold=dict(self.published).get(name, self.threshold))


def paper_scores(
    output: ImageOutput,
    class_embeds: Float[Tensor, "K E"],
    logit_scale: float | Tensor,
    size: tuple[int, int],
    background: float | None = None,
) -> Float[Tensor, "B _ h w"]:
    """Scores of each pixel of a window, for each class.

    Args:
        output: of `SegCLIP.encode_image`, for the windows.
        class_embeds: (K,E), one per class; normalised here.
        logit_scale: the multiplier of the cosines (100 for CLIP), not its logarithm.
        size: height and width of the window in pixels.
        background: a pixel whose best score is below this threshold is background; None: no background.

    Returns:
        (B,K,h,w), or (B,1+K,h,w) with the background first; in 0..1.

    Raises:
        ValueError: no classes, or embeddings of another width than the model's.
    """
    table = region_scores(output, class_embeds, logit_scale, background)
    return _paint(table, region_owner(output, size))


def region_scores(
    output: ImageOutput,
    class_embeds: Float[Tensor, "K E"],
    logit_scale: float | Tensor,
    background: float | None = None,
    kept: int = KEPT,
) -> Float[Tensor, "B C _"]:
    """Scores of each region for each class, (B,C,K), or (B,C,1+K) with the background first.

    score = a * b: a is the region's softmax over all classes, b its softmax over the window's `kept` best classes.
    """
    if class_embeds.ndim != 2 or not len(class_embeds) or class_embeds.shape[1] != output.regions.shape[-1]:
        raise ValueError(
            f"class embeddings of shape {tuple(class_embeds.shape)}; expected (classes, {output.regions.shape[-1]}), "
            "at least one class: embed the names with this same model"
        )
    text = F.normalize(class_embeds, dim=-1)
    logits = logit_scale * F.normalize(output.regions, dim=-1) @ text.T
    whole = logit_scale * F.normalize(output.embedding, dim=-1) @ text.T
    best = whole.topk(min(kept, len(text)), dim=-1).indices[:, None].expand(-1, logits.shape[1], -1)
    within = torch.zeros_like(logits).scatter(2, best, logits.gather(2, best).softmax(dim=-1))
    scores = logits.softmax(dim=-1) * within
    if background is None:
        return scores
    winner = scores.amax(dim=-1)  # (B,C)
    threshold = winner.amax(dim=-1, keepdim=True).clamp(max=background)  # some region of the window always passes
    return torch.cat([(winner < threshold).to(scores)[..., None], scores], dim=-1)


def _paint(table: Float[Tensor, "B C J"], owner: Int[Tensor, "B h w"]) -> Float[Tensor, "B J h w"]:
    """Give each pixel the scores of its region."""
    regions = owner.flatten(1)[:, None].expand(-1, table.shape[2], -1)
    return table.mT.gather(2, regions).unflatten(2, owner.shape[1:])


def region_owner(output: ImageOutput, size: tuple[int, int]) -> Int[Tensor, "B h w"]:
    """The region of each pixel: the soft assignment resized to `size`, then the best center."""
    rows, columns = patch_grid(output.soft.shape[-1], size)
    if is_identity(output.soft):  # so each pixel is its own patch's: there may be too many regions for a map of each
        down, across = (
            torch.arange(length, device=output.soft.device) * n // length
            for n, length in zip((rows, columns), size, strict=True)
        )
        return (down[:, None] * columns + across).expand(len(output.soft), -1, -1)
    # With a pixel's centers adjacent in memory, the best is found five times as fast.
    maps = output.soft.unflatten(-1, (rows, columns)).contiguous(memory_format=torch.channels_last)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False).movedim(1, -1).argmax(dim=-1)
