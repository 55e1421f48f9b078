"""The authors' SegCLIP: OpenAI's names under `clip.`, with the grouping and the masked branch added."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segclip.checkpoints import openai
from segclip.checkpoints.clip_config import ClipConfig
from segclip.checkpoints.clip_weights import Rules, count_blocks, read_sizes, rename
from segclip.checkpoints.native import build_model
from segclip.model.segclip import SegCLIP

GROUPING = r"^visual\.transformer\.semantic_layer2\."
DECODER = r"^vis_mae_decoder\."
RULES: Rules = (
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
    (r"^visual\.transformer\.layers0\.", "image.tower.trunk."),
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
    *openai.RULES,
)
IGNORED = r"decoder_pos_embed$|(^|\.)attn_mask$"  # fixed positions, and the causal mask


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these names are the authors'."""
    return any(name.startswith("clip.visual.") for name in state)


def read(state: Mapping[str, Tensor], path: Path) -> SegCLIP:
    """The authors' model.

    Raises:
        CheckpointError: missing, extra or wrongly shaped tensors, or such as are no finite floating-point numbers.
    """
    ours = rename(state, RULES, IGNORED, path)
    trunk, region = (count_blocks(ours, prefix) for prefix in ("image.tower.trunk.", "image.region_blocks."))
    config = read_sizes(ours, trunk, region, ClipConfig(), path)
    for name in ("image.grouping.key.weight", "image.grouping.value.weight"):  # 1x1 convolutions
        if name in ours and ours[name].ndim == 3:
            ours[name] = ours[name].squeeze(-1)
    if "reconstruction.mask_token" in ours:
        ours["reconstruction.mask_token"] = ours["reconstruction.mask_token"].flatten()
    return build_model(config, ours, path)
