"""The library transformers' CLIPModel: queries, keys and values apart, the projections transposed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from segclip.checkpoints.clip_config import OPEN_CLIP_FILE, check_sizes, read_clip_config
from segclip.checkpoints.clip_weights import Rules, State, build_from_clip, rename
from segclip.checkpoints.native import CONFIG_FILE
from segclip.model.segclip import SegCLIP

RULES: Rules = (
    (r"^text_projection\.weight$", "text.projection"),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positions"),
    (r"^text_model\.final_layer_norm\.", "text.norm_final."),
    (r"^text_model\.encoder\.layers\.", "text.blocks."),
    (r"^visual_projection\.weight$", "image.projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "image.tower.class_token"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "image.tower.patch_embed."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "image.tower.positions"),
    (r"^vision_model\.pre_layrnorm\.", "image.tower.norm_pre."),  # theirs is spelt so
    (r"^vision_model\.post_layernorm\.", "image.norm_post."),
    (r"^vision_model\.encoder\.layers\.", "image.layers."),
    (r"\.self_attn\.out_proj\.", ".attention.out_proj."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)
IGNORED = r"\.position_ids$"


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these names are those of transformers."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in state)


def read(state: Mapping[str, Tensor], path: Path) -> SegCLIP:
    """This CLIP, with a dense head.

    Raises:
        CheckpointError: missing, extra or wrongly shaped tensors; a configuration beside the file that is damaged, of
            another model, or asks for what no model here computes.
    """
    told = read_clip_config(path, (CONFIG_FILE, OPEN_CLIP_FILE))
    ours = rename(state, RULES, IGNORED, path)
    _join_attention(ours)
    for name in ("text.projection", "image.projection"):
        if name in ours and ours[name].ndim == 2:
            ours[name] = ours[name].T.contiguous()
    check_sizes(told, ours, path)
    return build_from_clip(ours, told, path)


def _join_attention(state: State) -> None:
    """Queries, keys and values of each block become one matrix, in place."""
    for name in [name for name in state if ".self_attn.q_proj." in name]:
        names = [name.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        found = [state[one] for one in names if one in state and state[one].shape == state[name].shape]
        if len(found) == 3:  # else the names stay as they are, and the error lists them
            state[name.replace(".self_attn.q_proj.", ".attention.in_proj.")] = torch.cat(found)
            for one in names:
                del state[one]
