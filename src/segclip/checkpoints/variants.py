"""A model with another dense head or another grouping, over the same weights."""

from dataclasses import replace
from functools import cache

import torch

from segclip.checkpoints.clip_weights import add_centers
from segclip.checkpoints.loading import load
from segclip.checkpoints.native import MINI, load_model
from segclip.config import ModelConfig
from segclip.model.dense import HEADS
from segclip.model.grouping import GROUPINGS
from segclip.model.segclip import SegCLIP
from segclip.utils.tables import choose

AFFINITY = "image.affinity."


def vary(
    model: SegCLIP, *, head: str | None = None, grouping: str | None = None, centers: int | None = None
) -> SegCLIP:
    """A model with another dense head, another grouping, or both; None leaves what it has. The weights are shared.

    Raises ValueError as `change_head` and `change_grouping` do.
    """
    if head not in (None, model.config.head):
        model = change_head(model, head)
    if grouping not in (None, model.config.grouping) or centers not in (None, model.config.centers):
        model = change_grouping(model, grouping or model.config.grouping, centers)
    return model


def load_to_train(name: str) -> SegCLIP:
    """The model with this name or file, on the CPU; a CLIP with centers and a masked branch drawn at random."""
    model = load(name, "cpu")
    return add_centers(model) if model.config.head else model


def change_head(model: SegCLIP, head: str) -> SegCLIP:
    """A CLIP with another dense head; the weights are shared, not copied.

    Args:
        model: a CLIP without learned centers, as `segclip.load` gives it.
        head: a name in `segclip.model.dense.HEADS`.

    Raises:
        ValueError: an unknown head; a model with learned centers, which has none.
    """
    asks = choose(HEADS, head, "head").affinity
    if model.config.head is None:
        raise ValueError(
            f"head {head!r}: this model's regions come of its {model.config.grouping}, and only a CLIP without "
            "such has dense heads; leave the head out, or name a CLIP, such as openai/clip-vit-base-patch16"
        )
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not name.startswith(AFFINITY)}
    affinity = _affinity_model() if asks else None
    if affinity:
        device = model.logit_scale.device
        own = affinity.image.tower.state_dict(keep_vars=True)
        state |= {AFFINITY + name: tensor.to(device) for name, tensor in own.items()}
    config = replace(model.config, head=head, affinity=affinity and affinity.config.image)
    return _build(config, state)


def change_grouping(model: SegCLIP, grouping: str, centers: int | None = None) -> SegCLIP:
    """A model whose patches are gathered in another way; the weights are shared, not copied.

    Args:
        model: any.
        grouping: "k-means" of each photo's patches; of a CLIP without learned centers, "patches"; of learned centers,
            "refined" by k-means of each photo. For "k-means", what learned which patch goes where is left out.
        centers: how many regions "k-means" gives; None: as many as the model's configuration says.

    Raises:
        ValueError: an unknown grouping, or one that the model's weights have no place in.
    """
    choose(GROUPINGS, grouping, "grouping")
    config = replace(model.config, grouping=grouping, centers=model.config.centers if centers is None else centers)
    state = model.state_dict(keep_vars=True)
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in SegCLIP(config).state_dict().items()}
    if any(name not in state or state[name].shape != shape for name, shape in wanted.items()):
        asked = grouping if centers is None else f"{grouping} of {centers}"
        known = "patches, k-means" if model.config.head else "k-means; or refined, without a number"
        raise ValueError(
            f"grouping {asked}: not with this model, whose weights are of the grouping {model.config.grouping!r} with "
            f"{model.config.centers} centers; it takes {known}"
        )
    return _build(config, {name: state[name] for name in wanted})


def _build(config: ModelConfig, state: dict[str, torch.Tensor]) -> SegCLIP:
    with torch.device("meta"):
        model = SegCLIP(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


@cache
def _affinity_model() -> SegCLIP:
    """The embedded model, whose DINOv2 says which patches are alike."""
    return load_model(MINI)
