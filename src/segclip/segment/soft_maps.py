"""A label's soft map: how likely it is at each pixel, drawn one label at a time, so that many labels need no memory.

Axes: H W pixels.
"""

from functools import singledispatch

from jaxtyping import Float
from torch import Tensor

from segclip.segment.background import Background
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.protocols import name_of
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.protocols.paper import PaperProtocol, region_owner, region_scores
from segclip.segment.protocols.protocol import EmbeddedLabels, LabelMap, Protocol
from segclip.segment.windows import resize_map


@singledispatch
def draw_soft(
    protocol: Protocol,
    photo: EncodedPhoto,
    labels: EmbeddedLabels,
    alone: EmbeddedLabels,
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
        alone: the one that is to be drawn; empty of meaning for the background.
        index: 0 is the background, i the i-th label.
        background: as given to `Segmenter.segment`.
        found: what the protocol made of all labels.
        scale: the multiplier of the cosines.

    Raises:
        ValueError: the protocol has no soft maps.
    """
    raise ValueError(f"protocol {name_of(protocol)} has no soft maps; use open, paper or groupvit for them")


@draw_soft.register
def draw_extent(
    protocol: OpenProtocol,
    photo: EncodedPhoto,
    labels: EmbeddedLabels,
    alone: EmbeddedLabels,
    index: int,
    background: Background,
    found: LabelMap,
    scale: float,
) -> Float[Tensor, "H W"]:
    """How surely each pixel is within the label's extent, which does not depend on the other labels.

    The background is what the score of the label that came closest leaves; a label found absent is nowhere.
    """
    if index == 0:
        return found.scores.where(found.labels == 0, 1 - found.scores) * (background is not None)
    if background is not None and found.presence[index - 1] < 0.5:
        return found.scores.new_zeros(photo.size)
    return protocol.label_photo(photo, alone, 0.0, None, scale).scores


@draw_soft.register
def draw_column(
    protocol: PaperProtocol,
    photo: EncodedPhoto,
    labels: EmbeddedLabels,
    alone: EmbeddedLabels,
    index: int,
    background: Background,
    found: LabelMap,
    scale: float,
) -> Float[Tensor, "H W"]:
    """The column of the paper's scores; the label of a pixel is the one whose column is the highest."""
    windows, output = photo.single(patches=False)
    threshold = protocol.threshold if background == "auto" else background
    if index == 0 and threshold is None:
        return found.scores.new_zeros(photo.size)
    table = region_scores(output, labels.labels, scale, threshold, protocol.kept)
    column = table[..., index - (threshold is None)]
    owner = region_owner(output, windows.window)
    painted = column.gather(1, owner.flatten(1)).view_as(owner)
    return resize_map(windows.average(painted[:, None]), photo.size)[0]
