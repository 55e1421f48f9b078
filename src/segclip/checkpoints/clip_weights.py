"""What the adapters of formats that derive from CLIP share: renaming, sizes read off the tensors, a lone CLIP."""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segclip.checkpoints.native import EXPECTED, CheckpointError, check_state, listing
from segclip.config import ImageConfig, ModelConfig, TextConfig
from segclip.model.segclip import SegCLIP

log = logging.getLogger(__name__)

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # regular expressions and their replacements, applied one after the other

REGION_LAYERS = 2  # CLIP's last two blocks run over the regions (arXiv 2211.14813, section 4.1)
CENTERS = 8  # of the paper, for a model that starts from CLIP


def rename(state: Mapping[str, Tensor], rules: Rules, ignored: str) -> State:
    """The same tensors under our names, without those that are computed and not learned.

    Args:
        state: tensors under their names in the file.
        rules: names that no rule knows stay as they are.
        ignored: a regular expression that finds the names to leave out.
    """
    return {our_name(name, rules): tensor for name, tensor in state.items() if not re.search(ignored, name)}


def our_name(name: str, rules: Rules) -> str:
    """Our name of a parameter in another format."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def build_from_clip(state: State, path: Path) -> SegCLIP:
    """A model that starts from CLIP: its last blocks run over the regions.

    The grouping and the masked branch, which CLIP lacks, start at random, and a warning says so.

    Args:
        state: under our names, but all blocks of the image tower as `image.layers.N`.
        path: of the file, for the errors.
    """
    layers = count_blocks(state, "image.layers.")
    trunk = layers - REGION_LAYERS
    if trunk < 1:
        raise CheckpointError(f"{path}: an image tower of {layers} blocks; expected at least {REGION_LAYERS + 1}")
    state = {_split_blocks(name, trunk): tensor for name, tensor in state.items()}
    model = SegCLIP(read_sizes(state, trunk, REGION_LAYERS, path))
    expected = model.state_dict()
    untrained = ("image.grouping.", "reconstruction.")
    check_state({n: t for n, t in expected.items() if not n.startswith(untrained)}, state, path)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    log.warning(
        "%s holds a CLIP: its grouping (learnable centers) and masked branch (image.grouping, reconstruction) are "
        "untrained and start at random; train them before you segment",
        path,
    )
    return model.eval()


def read_sizes(state: State, trunk: int, region: int, path: Path) -> ModelConfig:
    """The configuration that tensors under our names have.

    Args:
        state: the tensors.
        trunk, region: blocks over the patches, and over the regions.
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
            ImageConfig("clip", width, trunk, region, patch, grid * patch, grid),
            TextConfig(
                "clip",
                text_width,
                count_blocks(state, "text.blocks."),
                max(text_width // 64, 1),
                text_positions.shape[0],
                tokens.shape[0],
            ),
            embed,
            CENTERS if centers is None else centers.shape[0],
            decoder_layers=count_blocks(state, "reconstruction.decoder.") or ModelConfig.decoder_layers,
            center_blocks=count_blocks(state, "image.grouping.blocks.") or ModelConfig.center_blocks,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; {EXPECTED}") from error


def count_blocks(state: State, prefix: str) -> int:
    """Blocks under a prefix, by the numbers that follow it."""
    return len({found[1] for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def _split_blocks(name: str, trunk: int) -> str:
    """The name of a tensor of block N of the image tower: in the trunk, or past it among the blocks over regions."""
    found = re.match(r"image\.layers\.(\d+)\.(.*)", name)
    if not found:
        return name
    number = int(found[1])
    if number < trunk:
        return f"image.tower.trunk.{number}.{found[2]}"
    return f"image.region_blocks.{number - trunk}.{found[2]}"


def _tensor(state: State, name: str, axes: int, path: Path) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise CheckpointError(f"{path}: missing: {name} (in our names), from tensors {listing(state)}; {EXPECTED}")
    if tensor.ndim != axes or not tensor.numel():
        raise CheckpointError(f"{path}: {name} has the shape {tuple(tensor.shape)}; expected {axes} axes, none empty")
    return tensor
