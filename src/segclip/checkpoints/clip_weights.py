"""What the adapters of formats that derive from CLIP share: renaming, sizes read off the tensors, a lone CLIP."""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from segclip.checkpoints.clip_config import ClipConfig
from segclip.checkpoints.native import EXPECTED, CheckpointError, build_model, check_state, listing, to_float32
from segclip.config import ImageConfig, ModelConfig, TextConfig
from segclip.model.segclip import SegCLIP
from segclip.model.towers.clip import DEVIATION, MEAN
from segclip.model.towers.inputs import HEAD_WIDTH

log = logging.getLogger(__name__)

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # regular expressions and their replacements, applied one after the other

HEAD = "naclip"  # of a CLIP without learned centers: the best that its own weights give (docs/models.md)
HEAD_LAYERS = 1  # blocks that the head takes the place of
REGION_LAYERS = 2  # CLIP's last two blocks run over the regions (arXiv 2211.14813, section 4.1)


def rename(state: Mapping[str, Tensor], rules: Rules, ignored: str, path: Path) -> State:
    """The same weights under our names and in float32, without those that are computed and not learned.

    Args:
        state: tensors under their names in the file.
        rules: names that no rule knows stay as they are.
        ignored: a regular expression that finds the names to leave out.
        path: of the file, for the errors.

    Raises:
        CheckpointError: two tensors that would have one name; weights that are no finite floating-point numbers.
    """
    learned = {name: tensor for name, tensor in state.items() if not re.search(ignored, name)}
    renamed = {our_name(name, rules): tensor for name, tensor in learned.items()}
    if len(renamed) < len(learned):
        raise CheckpointError(f"{path}: several tensors for one weight, of {listing(learned)}; {EXPECTED}")
    return to_float32(renamed, path)


def our_name(name: str, rules: Rules) -> str:
    """Our name of a parameter in another format."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def build_from_clip(state: State, told: ClipConfig | None, path: Path) -> SegCLIP:
    """A CLIP as it is: each patch a region, by a dense head in place of the last block; the class token is kept.

    Args:
        state: as `rename` gives them, but all blocks of the image tower as `image.layers.N`.
        told: what the tensors do not tell; None: nothing is known, so it is taken for OpenAI's, and a warning says so.
        path: of the file, for the errors.

    Raises:
        CheckpointError: missing, extra or wrongly shaped tensors; they do not fit what is told of them.
    """
    if told is None:
        log.warning(
            "%s: its tensors do not tell the activation and the width of attention heads, and no open_clip_config.json "
            "or config.json lies beside it: taken for a CLIP of OpenAI's, with QuickGELU and heads of 64 channels. "
            "Others, such as OpenCLIP's of LAION and DataComp, give wrong results so: put its configuration there",
            path,
        )
        told = ClipConfig()
    layers = count_blocks(state, "image.layers.")
    trunk = layers - HEAD_LAYERS
    if trunk < 1:
        raise CheckpointError(f"{path}: an image tower of {layers} blocks; expected at least {HEAD_LAYERS + 1}")
    state = {_split_blocks(name, trunk): tensor for name, tensor in state.items()}
    config = read_sizes(state, trunk, HEAD_LAYERS, told, path)
    config = replace(
        config, image=replace(config.image, class_token=True), grouping="patches", head=HEAD, decoder_layers=0
    )
    if (told.mean, told.deviation) != (MEAN, DEVIATION):
        check_state(_expected(config), state, path)
        _fold_statistics(state, told)
    return build_model(config, state, path)


def config_with_centers(clip: ModelConfig) -> ModelConfig:
    """The configuration of a SegCLIP that starts from a CLIP: its last two blocks run over the regions.

    Raises:
        ValueError: an image tower of two blocks or less.
    """
    trunk = clip.image.trunk_layers + clip.image.region_layers - REGION_LAYERS
    if trunk < 1:
        raise ValueError(f"an image tower of {trunk + REGION_LAYERS} blocks; expected at least {REGION_LAYERS + 1}")
    image = replace(clip.image, trunk_layers=trunk, region_layers=REGION_LAYERS, class_token=False)
    return ModelConfig(image, clip.text, clip.embed)


def add_centers(clip: SegCLIP) -> SegCLIP:
    """A SegCLIP that starts from a CLIP; its grouping and masked branch are drawn at random, to be trained."""
    model = SegCLIP(config_with_centers(clip.config))
    before, after = (one.config.image.trunk_layers for one in (clip, model))
    state = {_split_blocks(_join_blocks(name, before), after): tensor for name, tensor in clip.state_dict().items()}
    model.load_state_dict({name: tensor for name, tensor in state.items() if ".affinity." not in name}, strict=False)
    return model.eval()


def _expected(config: ModelConfig) -> State:
    with torch.device("meta"):
        return SegCLIP(config).state_dict()


def _fold_statistics(state: State, told: ClipConfig) -> None:
    """Let the patch embedding take pixels that are normalised by CLIP's own statistics, in place.

    They are (pixels - MEAN) / DEVIATION, and it has learned from (pixels - mean) / deviation. The difference is a
    factor per colour, and a constant per channel, which the patches' positions take.
    """
    weight, positions = state["image.tower.patch_embed.weight"], state["image.tower.positions"].clone()
    mean, deviation = torch.tensor(told.mean), torch.tensor(told.deviation)
    positions[1:] += torch.einsum("dcij,c->d", weight, (torch.tensor(MEAN) - mean) / deviation)
    state["image.tower.patch_embed.weight"] = weight * (torch.tensor(DEVIATION) / deviation)[:, None, None]
    state["image.tower.positions"] = positions


def read_sizes(state: State, trunk: int, region: int, told: ClipConfig, path: Path) -> ModelConfig:
    """The configuration that tensors under our names have.

    Args:
        state: the tensors.
        trunk, region: blocks over the patches, and over the regions.
        told: what the tensors do not tell.
        path: of the file, for the errors.

    Raises:
        CheckpointError: a tensor is missing or has the wrong number of axes; the sizes fit no model.
    """
    patch_embed = _tensor(state, "image.tower.patch_embed.weight", 4, path)
    positions = _tensor(state, "image.tower.positions", 2, path)
    text_positions = _tensor(state, "text.positions", 2, path)
    tokens = _tensor(state, "text.token_embedding.weight", 2, path)
    embed = _tensor(state, "image.projection", 2, path).shape[1]
    centers = state.get("image.grouping.centers")
    width, patch = patch_embed.shape[0], patch_embed.shape[-1]
    grid = math.isqrt(positions.shape[0] - 1)
    if grid < 1 or grid**2 != positions.shape[0] - 1:
        raise CheckpointError(
            f"{path}: {positions.shape[0]} image positions; expected one for the class token and those of a square grid"
        )
    text_width = text_positions.shape[1]
    try:
        return ModelConfig(
            ImageConfig(
                "clip",
                width,
                trunk,
                region,
                patch,
                grid * patch,
                grid,
                heads=None if told.image.heads == width / HEAD_WIDTH else told.image.heads,
                mlp_ratio=_mlp_ratio(state, "image.tower.trunk.", width),
                activation=told.image.activation,
            ),
            TextConfig(
                "clip",
                text_width,
                count_blocks(state, "text.blocks."),
                max(text_width // HEAD_WIDTH, 1) if told.text.heads is None else told.text.heads,
                text_positions.shape[0],
                tokens.shape[0],
                mlp_ratio=_mlp_ratio(state, "text.blocks.", text_width),
                activation=told.text.activation,
            ),
            embed,
            ModelConfig.centers if centers is None else centers.shape[0],
            decoder_layers=count_blocks(state, "reconstruction.decoder.") or ModelConfig.decoder_layers,
            center_blocks=count_blocks(state, "image.grouping.blocks.") or ModelConfig.center_blocks,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; {EXPECTED}") from error


def count_blocks(state: State, prefix: str) -> int:
    """Blocks under a prefix, by the numbers that follow it."""
    return len({found[1] for name in state if (found := re.match(re.escape(prefix) + r"([0-9]+)\.", name))})


def _mlp_ratio(state: State, blocks: str, width: int) -> float:
    """Of the first block; one that gives exactly its hidden channels."""
    weight = state.get(f"{blocks}0.mlp.fc1.weight")
    if weight is None:
        return ImageConfig.mlp_ratio
    hidden = weight.shape[0] if weight.ndim else 0
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else (hidden + 0.5) / width


def _split_blocks(name: str, trunk: int) -> str:
    """The name of a tensor of block N of the image tower: in the trunk, or past it among the blocks over regions."""
    found = re.match(r"image\.layers\.([0-9]{1,4})\.(.*)", name)
    if not found:
        return name
    number = int(found[1])
    if number < trunk:
        return f"image.tower.trunk.{number}.{found[2]}"
    return f"image.region_blocks.{number - trunk}.{found[2]}"


def _join_blocks(name: str, trunk: int) -> str:
    """The inverse of `_split_blocks`."""
    name = name.replace("image.tower.trunk.", "image.layers.")
    found = re.match(r"image\.region_blocks\.([0-9]{1,4})\.(.*)", name)
    return f"image.layers.{trunk + int(found[1])}.{found[2]}" if found else name


def _tensor(state: State, name: str, axes: int, path: Path) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise CheckpointError(f"{path}: missing: {name} (in our names), from tensors {listing(state)}; {EXPECTED}")
    if tensor.ndim != axes or not tensor.numel():
        raise CheckpointError(f"{path}: {name} has the shape {tuple(tensor.shape)}; expected {axes} axes, none empty")
    return tensor
