"""What a recipe trains: its model, where the weights that it starts from have a say.

Of weights in our own format the header is enough, so that `segclip train RECIPE --help` shows the model's real numbers
at once.
"""

import dataclasses
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from segclip.checkpoints.clip_weights import config_with_centers
from segclip.checkpoints.loading import locate, read_file
from segclip.config import ModelConfig
from segclip.train.config import TrainConfig

OVER_OURS = ("centers", "grouping", "center_in_region", "tau", "center_blocks", "mask_ratio")
OVER_CLIP = (*OVER_OURS, "decoder_layers", "decoder_heads")  # a CLIP has neither grouping nor masked branch


@dataclass(frozen=True)
class Start:
    """Weights that training starts from.

    Attributes:
        model: their configuration.
        free: fields of it that may differ in what is trained.
    """

    model: ModelConfig
    free: tuple[str, ...]


def resolve(config: TrainConfig) -> TrainConfig:
    """The recipe with the model that is trained, and without losses of no weight.

    Raises:
        ValueError: `config.model` differs from the weights of `config.init_from` in what cannot be changed over them.
    """
    config = replace(config, losses={name: weight for name, weight in config.losses.items() if weight})
    if config.init_from is None:
        return replace(config, model=config.model or ModelConfig())
    start = read_start(config.init_from)
    if config.model is None:
        return replace(config, model=start.model)
    given, known = _flat(config.model), _flat(start.model)
    for name, value in given.items():
        if name not in start.free and value != known[name]:
            raise ValueError(
                f"model.{name} {value}; the weights of init_from, {config.init_from}, have {known[name]}, and over "
                f"weights only {', '.join(start.free)} can be changed: leave it out, or start from other weights or "
                "from none"
            )
    return config


def read_start(name: str) -> Start:
    """What weights hold, as `segclip.load` takes them. Raises ValueError where they cannot be read."""
    path = locate(name)
    model = _read_header(path) or _read_foreign(path, path.stat().st_mtime_ns)
    return Start(config_with_centers(model), OVER_CLIP) if model.head else Start(model, OVER_OURS)


@lru_cache(maxsize=1)  # the command asks before it prepares data, and the training asks again
def _read_foreign(path: Path, changed: int) -> ModelConfig:
    return read_file(path).config


def _read_header(path: Path) -> ModelConfig | None:
    """The configuration in the header of a safetensors file of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return ModelConfig.from_json((file.metadata() or {})["segclip_config"])
    except (OSError, ValueError, KeyError, SafetensorError):  # another format, or damaged: who reads all of it says why
        return None


def _flat(config: ModelConfig) -> dict[str, object]:
    """Its fields, those of the towers under their names with a dot."""
    flat: dict[str, object] = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= {f"{name}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat
