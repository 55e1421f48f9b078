"""OpenAI's CLIP and OpenCLIP's: the names of their archives and state dicts, which other formats build on."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segclip.checkpoints.clip_config import OPEN_CLIP_FILE, ClipConfig, check_sizes, read_clip_config
from segclip.checkpoints.clip_weights import Rules, build_from_clip, rename
from segclip.checkpoints.native import CONFIG_FILE
from segclip.model.segclip import SegCLIP

RULES: Rules = (
    (r"^positional_embedding$", "text.positions"),
    (r"^text_projection$", "text.projection"),
    (r"^token_embedding\.", "text.token_embedding."),
    (r"^ln_final\.", "text.norm_final."),
    (r"^transformer\.resblocks\.", "text.blocks."),
    (r"^visual\.class_embedding$", "image.tower.class_token"),
    (r"^visual\.positional_embedding$", "image.tower.positions"),
    (r"^visual\.proj$", "image.projection"),
    (r"^visual\.conv1\.", "image.tower.patch_embed."),
    (r"^visual\.ln_pre\.", "image.tower.norm_pre."),
    (r"^visual\.ln_post\.", "image.norm_post."),
    (r"^visual\.transformer\.resblocks\.", "image.layers."),
    (r"\.attn\.in_proj_", ".attention.in_proj."),
    (r"\.attn\.out_proj\.", ".attention.out_proj."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.c_fc\.", ".fc1."),
    (r"\.c_proj\.", ".fc2."),
)
IGNORED = r"^(input_resolution|context_length|vocab_size)$|(^|\.)attn_mask$"  # sizes, and the causal mask
OPENAI_SIZE = "input_resolution"  # in OpenAI's archives alone; OpenCLIP's models have the same names, and compute else


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these names are OpenAI's."""
    return any(name.startswith("visual.transformer.resblocks.") for name in state)


def read(state: Mapping[str, Tensor], path: Path) -> SegCLIP:
    """This CLIP, with a dense head.

    Raises:
        CheckpointError: missing, extra or wrongly shaped tensors; a configuration beside the file that is damaged, of
            another model, or asks for what no model here computes.
    """
    told = ClipConfig() if OPENAI_SIZE in state else read_clip_config(path, (OPEN_CLIP_FILE, CONFIG_FILE))
    ours = rename(state, RULES, IGNORED, path)
    check_sizes(told, ours, path)
    return build_from_clip(ours, told, path)
