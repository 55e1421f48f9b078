"""The library transformers' CLIPModel: queries, keys and values apart, the projections transposed."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from segclip.checkpoints.clip_weights import Rules, State, build_from_clip, rename
from segclip.checkpoints.native import CONFIG_FILE, EXPECTED, CheckpointError
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
COMPLETE: bool = False  # CLIP's towers alone: grouping and masked branch are new


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these names are those of transformers."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in state)


def read(state: Mapping[str, Tensor], path: Path) -> SegCLIP:
    """A model that starts from this CLIP.

    Raises:
        CheckpointError: missing, extra or wrongly shaped tensors; a config.json beside the file that tells of another
            activation or other heads.
    """
    _check_config(path.with_name(CONFIG_FILE))
    ours = rename(state, RULES, IGNORED)
    _join_attention(ours)
    for name in ("text.projection", "image.projection"):
        if name in ours and ours[name].ndim == 2:
            ours[name] = ours[name].T.contiguous()
    return build_from_clip(ours, path)


def _check_config(path: Path) -> None:
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


def _join_attention(state: State) -> None:
    """Queries, keys and values of each block become one matrix, in place."""
    for name in [name for name in state if ".self_attn.q_proj." in name]:
        names = [name.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        found = [state[one] for one in names if one in state and state[one].shape == state[name].shape]
        if len(found) == 3:  # else the names stay as they are, and the error lists them
            state[name.replace(".self_attn.q_proj.", ".attention.in_proj.")] = torch.cat(found)
            for one in names:
                del state[one]
