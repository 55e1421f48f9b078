"""Which models are on this machine, so that nothing has to be fetched: embedded, or in a cache."""

from pathlib import Path
from typing import Literal

from huggingface_hub import constants, try_to_load_from_cache

from segclip.checkpoints.clip_config import OPEN_CLIP_FILE, read_one_config
from segclip.checkpoints.native import CONFIG_FILE, CheckpointError, read_config
from segclip.checkpoints.sharded import INDEX_SUFFIX, part_names
from segclip.config import ModelConfig
from segclip.utils.files import cache_folder
from segclip.utils.messages import shorten

Place = Literal["embedded", "cached", "download"]

# Of save_pretrained, ours and transformers', and OpenCLIP's, the best first: safetensors are read without pickle.
WEIGHTS_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
AUTHORS_FILES = ("vit-b16.safetensors", "segclip.bin")  # in our own cache: converted, and put there by hand
LISTED = 8  # models that a message lists


def place_of(name: str) -> Place:
    """Where a model is: in the package, in a cache, or elsewhere.

    Args:
        name: "mini", "vit-b16" or a hub id.
    """
    if name == "mini":
        return "embedded"
    if name == "vit-b16":
        return "cached" if any((cache_folder() / file).is_file() for file in AUTHORS_FILES) else "download"
    return "download" if cached_weights(name) is None else "cached"


def cached_weights(name: str) -> Path | None:
    """The weights of a hub id in the hub's cache, whole; None where there are none."""
    for file in WEIGHTS_FILES:
        path = _in_cache(name, file)
        if path is not None and (not file.endswith(INDEX_SUFFIX) or _has_parts(name, path)):
            return path
    return None


def cached_hub_models() -> list[str]:
    """Ids of the models in the hub's cache that can be opened, by their configuration, in order."""
    found = []
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        name = "/".join(folder.name.split("--")[1:3])
        if len(folder.name.split("--")) == 3 and _is_ours(name) and place_of(name) == "cached":
            found.append(name)
    return found


def at_hand() -> str:
    """The models that need no network, in words for a message."""
    names = ["mini (embedded)"]
    names += ["vit-b16 (cached)"] if place_of("vit-b16") == "cached" else []
    names += [f"{shorten(name)} (cached)" for name in cached_hub_models()]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"at hand without a network: {', '.join(names[:LISTED])}{more}"


def _is_ours(name: str) -> bool:
    """Whether a cached configuration is that of a CLIP that can be opened, or of a SegCLIP."""
    for file in (CONFIG_FILE, OPEN_CLIP_FILE):
        path = _in_cache(name, file)
        if path is None:
            continue
        try:
            if read_one_config(path) is not None or ModelConfig.from_json(read_config(path) or ""):
                return True
        except (CheckpointError, ValueError, OSError):
            continue
    return False


def _has_parts(name: str, index: Path) -> bool:
    try:
        return all(_in_cache(name, part) is not None for part in part_names(index))
    except CheckpointError:
        return False


def _in_cache(name: str, file: str) -> Path | None:
    path = try_to_load_from_cache(name, file)
    return Path(path) if isinstance(path, str) else None
