"""What CLIP's tensors do not tell, from a configuration beside them: OpenCLIP's or transformers'.

That is the activation, the width of attention heads, and the statistics that pixels are normalised by. What else such a
configuration can ask for, and no model here computes, is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from segclip.checkpoints.native import CONFIG_FILE, CheckpointError, read_config
from segclip.model.towers.clip import DEVIATION, MEAN
from segclip.utils.messages import brief, shorten

OPEN_CLIP_FILE = "open_clip_config.json"
PIXELS_FILE = "preprocessor_config.json"  # of transformers
CONFIG_FILES = (CONFIG_FILE, OPEN_CLIP_FILE, PIXELS_FILE)

# Fields of OpenCLIP's that are read, or told by the tensors, or of training alone (open_clip/model.py, CLIPVisionCfg,
# CLIPTextCfg). Others have to be off, or what they are by default.
OPEN_CLIP_FIELDS = {
    *("layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size", "context_length"),
    *("vocab_size", "patch_dropout", "output_tokens", "pad_id", "eos_id", "attn_pooler_queries", "attn_pooler_heads"),
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"),
}
OPEN_CLIP_DEFAULTS = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",)}
TRANSFORMERS_HEADS = {"vision_config": 12, "text_config": 8}  # its defaults, which its files leave out
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Told:
    """What is told of a tower.

    Attributes:
        activation: as a tower's configuration names it; None: CLIP's own.
        heads: of attention; None: one for each 64 channels.
    """

    activation: str | None = None
    heads: int | None = None


@dataclass(frozen=True)
class ClipConfig:
    """What is told of a CLIP; by default what is true of OpenAI's own.

    Attributes:
        image, text: the towers.
        mean, deviation: that its pixels, RGB of 0-1, are normalised by.
        sizes: which the tensors tell too, by the names of `check_sizes`, as far as the configuration says them.
    """

    image: Told = Told()
    text: Told = Told()
    mean: tuple[float, ...] = MEAN
    deviation: tuple[float, ...] = DEVIATION
    sizes: Mapping[str, int] = field(default_factory=dict)


def check_sizes(told: ClipConfig | None, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError where a configuration tells of other sizes than the tensors beside it have.

    Args:
        told: None: nothing is told.
        state: tensors under our names, all blocks of the image tower as `image.layers.N`.
        path: of the file, for the errors.
    """
    if told is None:
        return
    found = _sizes(state)
    for name, size in told.sizes.items():
        if found.get(name, size) != size:
            raise CheckpointError(
                f"{path}: the configuration beside it tells of another model: {name} {brief(size)}, and its tensors "
                f"have {found[name]}; put the configuration of these weights there"
            )


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes that tensors tell; a tensor that is missing or of another shape tells none."""
    axes = (
        ("image width", "image.tower.patch_embed.weight", 4, 0),
        ("image patch", "image.tower.patch_embed.weight", 4, 3),
        ("image hidden channels", "image.layers.0.mlp.fc1.weight", 2, 0),
        ("embedding", "image.projection", 2, 1),
        ("text width", "text.positions", 2, 1),
        ("text context", "text.positions", 2, 0),
        ("text vocabulary", "text.token_embedding.weight", 2, 0),
        ("text hidden channels", "text.blocks.0.mlp.fc1.weight", 2, 0),
    )
    found = {name: state[key].shape[axis] for name, key, ndim, axis in axes if key in state and state[key].ndim == ndim}
    for name, prefix in (("image layers", "image.layers."), ("text layers", "text.blocks.")):
        blocks = {match[1] for key in state if (match := re.match(re.escape(prefix) + r"([0-9]+)\.", key))}
        if blocks:
            found[name] = len(blocks)
    positions = state.get("image.tower.positions")
    if positions is not None and positions.ndim == 2 and "image patch" in found:
        found["image side"] = math.isqrt(max(len(positions) - 1, 0)) * found["image patch"]
    return found


def read_clip_config(path: Path, names: tuple[str, ...]) -> ClipConfig | None:
    """The first configuration of a CLIP beside a file of weights; None where there is none.

    Args:
        path: of the weights.
        names: files to look for.

    Raises:
        CheckpointError: damaged, or it asks for what no model here computes.
    """
    for name in names:
        if (told := read_one_config(path.with_name(name))) is not None:
            return told
    return None


def read_one_config(file: Path) -> ClipConfig | None:
    """What a configuration tells of a CLIP; None where there is no such file, or it is of something else unknown.

    Raises:
        CheckpointError: damaged, or it asks for what no model here computes.
    """
    raw = _read_json(file)
    if isinstance(raw.get("model_cfg"), dict):
        return _open_clip(raw, file)
    if "vision_cfg" in raw and "text_cfg" in raw:  # one of OpenCLIP's model_configs
        return _open_clip({"model_cfg": raw}, file)
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind != "clip":
        raise CheckpointError(
            f"{file}: the configuration of a {shorten(kind)}, not of a CLIP with both towers, which is what can be "
            "opened; put the configuration of these weights there, or take another model, such as "
            "openai/clip-vit-base-patch16"
        )
    if kind == "clip" or "vision_config" in raw or "text_config" in raw:
        return _transformers(raw, file)
    return None


def _read_json(file: Path) -> Mapping[str, Any]:
    """The fields of a JSON file, none where it is missing or holds something else."""
    try:
        text = read_config(file)
        raw = None if text is None else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: no configuration ({shorten(str(error), 200)}); mend it, or remove it if it is of other weights"
        ) from error
    return raw if isinstance(raw, dict) else {}


def _open_clip(raw: Mapping[str, Any], file: Path) -> ClipConfig:
    model = _fields(raw, "model_cfg", file)
    image, text = _fields(model, "vision_cfg", file), _fields(model, "text_cfg", file)
    for part, fields in (("model_cfg", model), ("vision_cfg", image), ("text_cfg", text)):
        for name, value in fields.items():
            if value and name not in OPEN_CLIP_FIELDS and value not in OPEN_CLIP_DEFAULTS.get(name, ()):
                raise _unknown(file, f"{part}.{name}", value)
    activation = None if model.get("quick_gelu", False) else "gelu"
    _whole(image, "layers", 12, file)  # a ResNet's is a list
    width, head = (_whole(image, name, default, file) for name, default in (("width", 768), ("head_width", 64)))
    text_width, heads = (_whole(text, name, default, file) for name, default in (("width", 512), ("heads", 8)))
    mean, deviation = _statistics(_fields(raw, "preprocess_cfg", file), "mean", "std", file)
    sizes = {"image width": width, "text width": text_width} | _said(
        ("image layers", image, "layers"),
        ("image patch", image, "patch_size"),
        ("image side", image, "image_size"),
        ("text layers", text, "layers"),
        ("text context", text, "context_length"),
        ("text vocabulary", text, "vocab_size"),
        ("embedding", model, "embed_dim"),
    )
    return ClipConfig(Told(activation, width // head), Told(activation, heads), mean, deviation, sizes)


def _transformers(raw: Mapping[str, Any], file: Path) -> ClipConfig:
    towers, sizes = {}, _said(("embedding", raw, "projection_dim"))
    for name, default in TRANSFORMERS_HEADS.items():
        fields = {**_fields(raw, name, file), **_fields(raw, f"{name}_dict", file)}
        activation, eps = fields.get("hidden_act", "quick_gelu"), fields.get("layer_norm_eps", NORM_EPS)
        if activation not in ("quick_gelu", "gelu"):
            raise _unknown(file, f"{name}.hidden_act", activation)
        if eps != NORM_EPS:
            raise _unknown(file, f"{name}.layer_norm_eps", eps)
        heads = _whole(fields, "num_attention_heads", default, file)
        towers[name] = Told(None if activation == "quick_gelu" else activation, heads)
        tower = name.removesuffix("_config").replace("vision", "image")
        sizes |= _said(
            (f"{tower} width", fields, "hidden_size"),
            (f"{tower} layers", fields, "num_hidden_layers"),
            (f"{tower} hidden channels", fields, "intermediate_size"),
            (f"{tower} patch", fields, "patch_size"),
            (f"{tower} side", fields, "image_size"),
            (f"{tower} context", fields, "max_position_embeddings"),
            (f"{tower} vocabulary", fields, "vocab_size"),
        )
    pixels = file.with_name(PIXELS_FILE)
    mean, deviation = _statistics(_read_json(pixels), "image_mean", "image_std", pixels)
    return ClipConfig(towers["vision_config"], towers["text_config"], mean, deviation, sizes)


def _said(*sizes: tuple[str, Mapping[str, Any], str]) -> dict[str, int]:
    """Sizes by our names, of those fields that are there and hold a whole number."""
    return {name: fields[key] for name, fields, key in sizes if type(fields.get(key)) is int}


def _fields(raw: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    fields = raw.get(name) or {}
    if not isinstance(fields, dict):
        raise _unknown(file, name, fields)
    return fields


def _whole(fields: Mapping[str, Any], name: str, default: int, file: Path) -> int:
    value = fields.get(name, default)
    if type(value) is not int or value < min(default, 1):
        raise _unknown(file, name, value)
    return value


def _statistics(raw: Mapping[str, Any], mean: str, deviation: str, file: Path) -> tuple[tuple[float, ...], ...]:
    """Mean and deviation, CLIP's where they are not given."""
    found = []
    for name, default in ((mean, MEAN), (deviation, DEVIATION)):
        numbers = raw.get(name) or default
        good = isinstance(numbers, (list, tuple)) and len(numbers) == 3
        good = good and all(type(n) in (int, float) and 0 <= n <= 255 for n in numbers)
        if not good or (name == deviation and not math.prod(numbers)):
            raise _unknown(file, name, numbers)
        found.append(tuple(numbers))
    return tuple(found)


def _unknown(file: Path, name: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{file}: {shorten(name)} is {brief(value)}, which no model here computes; expected a plain CLIP ViT"
    )
