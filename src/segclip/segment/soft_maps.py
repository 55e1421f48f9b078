"""A label's soft map: how likely it is at each pixel, drawn one label at a time, so that many labels need no memory.

Axes: H W pixels.
"""

from functools import singledispatch

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segclip.segment.background import Background
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.protocols import name_of
from segclip.segment.protocols.dense import DenseProtocol
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.protocols.paper import PaperProtocol, region_owner, region_scores
from segclip.segment.protocols.protocol import EmbeddedLabels, LabelMap, Protocol
from segclip.segment.windows import resize_map


@singledispatch
def draw_soft(
    protocol: Protocol,
    photo: EncodedPhoto,
    labels: EmbeddedLabels,
    index: int,
    background: Background,
    found: LabelMap,
    scale: float,
) -> Float[Tensor, "H W"]:
    """How likely a label is at each pixel, 0-1. A protocol of your own registers its way: `draw_soft.register`.

    Args:
        protocol: that labelled the photo.
        photo: as that protocol encoded it.
        labels: all of them.
        index: 0 is the background, i the i-th label.
        background: as given to `Segmenter.segment`.
        found: what the protocol made of all labels.
        scale: the multiplier of the cosines.

    Raises:
        ValueError: the protocol has no soft maps.
    """
    raise ValueError(f"protocol {name_of(protocol)} has no soft maps; take one that has: open, paper, groupvit, dense")


@draw_soft.register
def draw_extent(
    protocol: OpenProtocol,
    photo: EncodedPhoto,
    labels: EmbeddedLabels,
    index: int,
    background: Background,
    found: LabelMap,
    scale: float,
) -> Float[Tensor, "H W"]:
    """How surely each pixel is within the label's extent, which does not depend on the other labels.

    The background is what the score of the label that came closest leaves; a label found absent is nowhere.
    """
    if index == 0:
        nothing = found.labels == 0
        by_words = (found.labels == labels.count) & labels.background
        left = found.scores.where(nothing | by_words, 1 - found.scores)
        return left * (background is not None or labels.background)
    if background is not None and found.presence[index - 1] < 0.5:
        return found.scores.new_zeros(photo.size)
    alone = labels.only(found.labels.new_tensor([index - 1]))
    return protocol.label_photo(photo, alone, 0.0, None, scale).scores


@draw_soft.register
def draw_column(
    protocol: PaperProtocol,
    photo: EncodedPhoto,
    labels: EmbeddedLabels,
    index: int,
    background: Background,
    found: LabelMap,
    scale: float,
) -> Float[Tensor, "H W"]:
    """The paper's score, that of the label's best word; the label of a pixel is the one whose score is the highest."""
    windows, output = photo.single(patches=False)
    threshold = protocol.threshold if background == "auto" else background
    table = region_scores(output, labels.labels, scale, threshold, protocol.kept)
    first = int(threshold is not None)
    owners = labels.owner() + 1
    if labels.background:
        owners = owners.masked_fill(owners == labels.count, 0)
    columns = (F.pad(owners, (first, 0)) == index).nonzero()[:, 0]
    if not len(columns):
        return found.scores.new_zeros(photo.size)
    owner = region_owner(output, windows.window)
    regions = owner.flatten(1)[:, None].expand(-1, len(columns), -1)
    average = windows.average(table[..., columns].mT.gather(2, regions).unflatten(2, owner.shape[1:]))
    return resize_map(average, photo.size).amax(dim=0)


@draw_soft.register
def draw_likelihood(
    protocol: DenseProtocol,
    photo: EncodedPhoto,
    labels: EmbeddedLabels,
    index: int,
    background: Background,
    found: LabelMap,
    scale: float,
) -> Float[Tensor, "H W"]:
    """How likely the label is among all words; the background is what the likeliest label leaves, or its words."""
    if index == 0 and not labels.background:
        return (1 - found.scores) * (background is not None)
    return protocol.draw_label(photo, labels, (index or labels.count) - 1)
