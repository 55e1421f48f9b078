"""Other people's names of SegCLIP's and CLIP's weights, told apart and translated to ours.

Every size is read off the tensors. Three formats: the authors' SegCLIP, OpenAI's CLIP, transformers' CLIPModel.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from segclip.checkpoints.native import CheckpointError, build_model, check_state, listing
from segclip.config import ImageConfig, ModelConfig, TextConfig
from segclip.model.segclip import SegCLIP

log = logging.getLogger(__name__)

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

EXPECTED = (
    "expected weights of SegCLIP (the authors' segclip.bin or segclip's own safetensors) or of a CLIP ViT "
    "(OpenAI's archive or state dict, transformers' CLIPModel)"
)
REGION_LAYERS = 2  # CLIP's last two blocks run over the regions (arXiv 2211.14813, section 4.1)
CENTERS = 8  # of the paper, for a model that starts from CLIP

# Names inside a block, the same in every format derived from OpenAI's code.
BLOCK_RULES: Rules = (
    (r"\.attn\.in_proj_", ".attention.in_proj."),
    (r"\.attn\.out_proj\.", ".attention.out_proj."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
)
OPENAI_RULES: Rules = (
    (r"^positional_embedding$", "text.positions"),
    (r"^text_projection$", "text.projection"),
    (r"^token_embedding\.", "text.token_embedding."),
    (r"^ln_final\.", "text.norm_final."),
    (r"^transformer\.resblocks\.", "text.blocks."),
    (r"^visual\.class_embedding$", "image.class_token"),
    (r"^visual\.positional_embedding$", "image.positions"),
    (r"^visual\.proj$", "image.projection"),
    (r"^visual\.conv1\.", "image.patch_embed."),
    (r"^visual\.ln_pre\.", "image.norm_pre."),
    (r"^visual\.ln_post\.", "image.norm_post."),
    (r"^visual\.transformer\.resblocks\.", "image.layers."),
    *BLOCK_RULES,
)
GROUPING = r"^visual\.transformer\.semantic_layer2\."
DECODER = r"^vis_mae_decoder\."
AUTHORS_RULES: Rules = (
    (r"^clip\.", ""),
    (GROUPING + r"semantic_center$", "image.grouping.centers"),
    (GROUPING + r"cross_att\.", "image.grouping.blocks."),
    (GROUPING + r"cross_ln\.", "image.grouping.norm_centers."),
    (GROUPING + r"norm\.", "image.grouping.norm_patches."),
    (GROUPING + r"k_conv\.", "image.grouping.key."),
    (GROUPING + r"k_ln\.", "image.grouping.norm_key."),
    (GROUPING + r"v_conv\.", "image.grouping.value."),
    (GROUPING + r"proj_o\.ln\.", "image.grouping.norm_out."),
    (GROUPING + r"proj_o\.mlp\.", "image.grouping.mlp_out."),
    (r"\.ln_x\.", ".norm_centers."),
    (r"\.ln_k\.", ".norm_context."),
    (r"^visual\.transformer\.layers0\.", "image.trunk."),
    (r"^visual\.transformer\.layers2\.", "image.region_blocks."),
    (r"^visual\.transformer\.layers_mae2\.", "reconstruction.blocks."),
    (r"^visual\.transformer\.reconstruct_layer2\.rec_proj_a\.a_fc\.", "reconstruction.unpool."),
    (DECODER + r"mask_token$", "reconstruction.mask_token"),
    (DECODER + r"decoder_embed\.", "reconstruction.embed."),
    (DECODER + r"decoder_blocks\.(\d+)\.attn\.qkv\.", r"reconstruction.decoder.\1.attention.in_proj."),
    (DECODER + r"decoder_blocks\.(\d+)\.attn\.proj\.", r"reconstruction.decoder.\1.attention.out_proj."),
    (DECODER + r"decoder_blocks\.", "reconstruction.decoder."),
    (DECODER + r"decoder_norm\.", "reconstruction.norm."),
    (DECODER + r"decoder_pred\.", "reconstruction.predict."),
    *OPENAI_RULES,
)
TRANSFORMERS_RULES: Rules = (
    (r"^text_projection\.weight$", "text.projection"),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positions"),
    (r"^text_model\.final_layer_norm\.", "text.norm_final."),
    (r"^text_model\.encoder\.layers\.", "text.blocks."),
    (r"^visual_projection\.weight$", "image.projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "image.class_token"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "image.patch_embed."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "image.positions"),
    (r"^vision_model\.pre_layrnorm\.", "image.norm_pre."),
    (r"^vision_model\.post_layernorm\.", "image.norm_post."),
    (r"^vision_model\.encoder\.layers\.", "image.layers."),
    (r"\.self_attn\.out_proj\.", ".attention.out_proj."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)
# Computed, not learned: fixed positions, sizes, the causal mask.
IGNORED = re.compile(
    r"decoder_pos_embed$|^(input_resolution|context_length|vocab_size)$|(^|\.)attn_mask$|\.position_ids$"
)


def read_foreign(state: Mapping[str, Tensor], path: Path) -> SegCLIP:
    """Our model from the tensors of a file of any of the three formats.

    Weights of a CLIP have no grouping and no masked branch: these start at random, and a warning says so.

    Args:
        state: tensors under their names in the file.
        path: of the file, for the errors.

    Raises:
        CheckpointError: of no known format, or with missing, extra or wrongly shaped tensors.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    plain = {name: tensor for name, tensor in plain.items() if not IGNORED.search(name)}
    if any(name.startswith("clip.visual.") for name in plain):
        return _from_authors(plain, path)
    if any(name.startswith("visual.layer1.") for name in plain):
        raise CheckpointError(f"{path}: looks like OpenAI's CLIP with a ResNet image tower; {EXPECTED}")
    if any(name.startswith("visual.transformer.resblocks.") for name in plain):
        return _from_clip(rename(plain, OPENAI_RULES), path)
    if any(name.startswith(("vision_model.", "text_model.")) for name in plain):
        _check_transformers_config(path.with_name("config.json"))
        return _from_clip(_unfuse_transformers(plain), path)
    raise CheckpointError(f"{path}: looks like weights of another model, tensors {listing(plain)}; {EXPECTED}")


def is_plain_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors that `read_foreign` takes are those of a CLIP alone, without grouping and masked branch."""
    return not any(name.removeprefix("module.").startswith("clip.visual.") for name in state)


def rename(state: Mapping[str, Tensor], rules: Rules) -> State:
    """The same tensors under our names; names that no rule knows stay as they are."""
    return {our_name(name, rules): tensor for name, tensor in state.items()}


def our_name(name: str, rules: Rules) -> str:
    """Our name of a parameter in another format."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _from_authors(state: State, path: Path) -> SegCLIP:
    state = rename(state, AUTHORS_RULES)
    config = _read_sizes(state, _count(state, "image.trunk."), _count(state, "image.region_blocks."), path)
    for name in ("image.grouping.key.weight", "image.grouping.value.weight"):  # 1x1 convolutions
        if name in state and state[name].ndim == 3:
            state[name] = state[name].squeeze(-1)
    if "reconstruction.mask_token" in state:
        state["reconstruction.mask_token"] = state["reconstruction.mask_token"].flatten()
    return build_model(config, state, path)


def _from_clip(state: State, path: Path) -> SegCLIP:
    """CLIP's towers; its last blocks go over the regions, and what CLIP has not starts as the paper's."""
    layers = _count(state, "image.layers.")
    trunk = layers - REGION_LAYERS
    if trunk < 1:
        raise CheckpointError(f"{path}: an image tower of {layers} blocks; expected at least {REGION_LAYERS + 1}")
    state = {_place_block(name, trunk): tensor for name, tensor in state.items()}
    model = SegCLIP(_read_sizes(state, trunk, REGION_LAYERS, path))
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


def _place_block(name: str, trunk: int) -> str:
    found = re.match(r"image\.layers\.(\d+)\.(.*)", name)
    if not found:
        return name
    index = int(found[1])
    return f"image.trunk.{index}.{found[2]}" if index < trunk else f"image.region_blocks.{index - trunk}.{found[2]}"


def _check_transformers_config(path: Path) -> None:
    """What the tensors do not tell: transformers can run the same names with another activation or other heads."""
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        towers = {name: config[name] for name in ("text_config", "vision_config") if name in config}
        for name, tower in towers.items():
            activation = tower.get("hidden_act", "quick_gelu")
            if activation != "quick_gelu":
                raise CheckpointError(f"{path}: {name} has the activation {activation}; expected CLIP's quick_gelu")
            width, heads = tower.get("hidden_size"), tower.get("num_attention_heads")
            if width and heads and width != 64 * heads:
                raise CheckpointError(f"{path}: {name} has {heads} heads for a width of {width}; expected width / 64")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: no configuration of transformers ({error}); {EXPECTED}") from error


def _unfuse_transformers(plain: State) -> State:
    """The library transformers keeps queries, keys and values apart, and its projections transposed."""
    state = rename(plain, TRANSFORMERS_RULES)
    for name in [name for name in state if ".self_attn.q_proj." in name]:
        parts = [state.get(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        found = [part for part in parts if part is not None and part.shape == state[name].shape]
        if len(found) == 3:  # else the names stay as they are, and the error lists them
            state[name.replace(".self_attn.q_proj.", ".attention.in_proj.")] = torch.cat(found)
            for part in ("q_proj", "k_proj", "v_proj"):
                del state[name.replace("q_proj", part)]
    for name in ("text.projection", "image.projection"):
        if name in state and state[name].ndim == 2:
            state[name] = state[name].T.contiguous()
    return state


def _read_sizes(state: State, trunk: int, region: int, path: Path) -> ModelConfig:
    """The configuration that tensors under our names have."""
    patch_embed = _matrix(state, "image.patch_embed.weight", 4, path)
    positions = _matrix(state, "image.positions", 2, path)
    text_positions = _matrix(state, "text.positions", 2, path)
    tokens = _matrix(state, "text.token_embedding.weight", 2, path)
    embed = _matrix(state, "image.projection", 2, path).shape[1]
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
                _count(state, "text.blocks."),
                max(text_width // 64, 1),
                text_positions.shape[0],
                tokens.shape[0],
            ),
            embed,
            CENTERS if centers is None else centers.shape[0],
            decoder_layers=_count(state, "reconstruction.decoder.") or ModelConfig.decoder_layers,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; {EXPECTED}") from error


def _matrix(state: State, name: str, axes: int, path: Path) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise CheckpointError(f"{path}: missing: {name} (in our names), from tensors {listing(state)}; {EXPECTED}")
    if tensor.ndim != axes or not tensor.numel():
        raise CheckpointError(f"{path}: {name} has the shape {tuple(tensor.shape)}; expected {axes} axes, none empty")
    return tensor


def _count(state: State, prefix: str) -> int:
    """Blocks under a prefix, by the numbers that follow it."""
    return len({found[1] for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))})
