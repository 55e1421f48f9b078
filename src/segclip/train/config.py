"""A training run: its recipe, as frozen dataclasses."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from segclip.config import (
    LABEL_SMOOTHING,
    PAPER_WEIGHTS,
    WORDS_POWER,
    LossSettings,
    ModelConfig,
    SuperpixelLoss,
    current_name,
)
from segclip.data.crops import CROP_SCALE
from segclip.data.superpixels import Reduction
from segclip.train.checks import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    BETWEEN,
    FROM_0,
    SOME,
    check_fields,
    is_number,
)  # fmt: skip
from segclip.utils.messages import brief


def _formerly(*options: str) -> object:
    """A field of another name before: the options of that name still work."""
    return tyro.conf.arg(aliases=options)


_CACHE_RANGES = {"crops": AT_LEAST_1, "patches": AT_LEAST_1, "reconstruction_fraction": SOME, "seed": AT_LEAST_0}


@dataclass(frozen=True)
class CacheConfig:
    """How a model learns over towers that stay as they are: from their features, computed once.

    Attributes:
        crops: fixed crops of each photo whose features are cached; every pass draws one of them.
        patches: how many of a photo's patches a step sees, drawn anew each time; None: all of them.
        reconstruction_fraction: share of the photos, and of a batch, that the masked branch sees: it costs three times
            what the plain one does.
        folder: where the features are kept, so that runs over the same towers and photos can share them; None: in the
            run's own folder.
        seed: of the crops and masks; not the run's, so that runs with other seeds can share features.
    """

    crops: int = 1
    patches: int | None = None
    reconstruction_fraction: Annotated[float, _formerly("--cache.reconstructed")] = 0.0625
    folder: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(CacheConfig, vars(self), _CACHE_RANGES, "cache.")


Weights = Annotated[str | None, _formerly("--start")]


_RANGES = {
    **dict.fromkeys(("epochs", "steps", "batch", "micro_batch", "tokens", "words_power"), AT_LEAST_1),
    **dict.fromkeys(("save_every", "keep_checkpoints", "validate_every"), AT_LEAST_1),
    **dict.fromkeys(("lr", "slow_lr", "weight_decay"), FROM_0),
    **dict.fromkeys(("workers", "seed"), AT_LEAST_0),
    **dict.fromkeys(("eps", "max_grad_norm", "soft_target_scale"), ABOVE_0),
    "warmup": BELOW_1,
    "label_smoothing": BETWEEN,
}


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the paper's (arXiv 2211.14813, training details).

    Attributes:
        init_from: weights to start from, as `segclip.load` takes them; None: the model starts untrained.
        model: what is trained; None: as the weights of `init_from` have it, or else the paper's. Over weights,
            `centers` can be another number, and so can what the weights do not hold (`segclip.train.resolve`).
        cache: learn from the cached features of frozen towers; None: train on the photos themselves.
        init_centers: "random": as `init_from` or the model's initialisation has them; "k-means": the grouping starts as
            two steps of k-means over what the trunk gives for some photos, and with cached features what names the
            regions as least squares from them to captions (see `segclip.train.initialization`).
        epochs: passes over the data.
        steps: end after so many steps; None: as the epochs give.
        batch: samples in a step, of all processes; the last incomplete batch of a pass is left out.
        micro_batch: samples that a process encodes at once; the step's losses and gradients are those of the whole
            batch nevertheless. None: all of its share.
        captions: "one": a pass has each photo once, with one of its captions drawn; "all": it has each caption once.
        crop_scale: smallest and largest share of a photo's area that its random crop takes.
        reduction: superpixels to patches, see `segclip.data.superpixels.patch_superpixels`.
        tokens: of a caption, at most.
        losses: weight of each term of the loss, by its name in `segclip.losses.LOSSES`; what has none, or 0, is not
            computed.
        soft_target_scale: captions that mean alike share their target, the less the larger this is (see
            `segclip.losses.contrastive_loss`); None: each pair has its own, as in the paper.
        words_power: of the loss "words", see `segclip.losses.words_loss`.
        superpixel_loss: see `segclip.losses.superpixel_loss`.
        label_smoothing: of the superpixel loss "one-softmax".
        frozen: names of parameters that stay as they are begin with one of these.
        slow: names of parameters that learn at `slow_lr` begin with one of these.
        lr: peak learning rate of all others, reached after `warmup` of the steps, then down to 0 by a cosine.
        slow_lr: peak learning rate of `slow`, on the same schedule.
        warmup: share of all steps.
        weight_decay: on all but biases.
        betas: of AdamW, its two moments' decay.
        eps: of AdamW.
        max_grad_norm: ceiling of the gradient's global norm.
        precision: "bf16" computes in bfloat16 what bears it; parameters and losses stay in float32.
        compile: compile the transformer blocks with torch.compile, which takes a minute or so at the start; figures
            differ by rounding. On a CPU it needs a C++ compiler.
        checkpoint_activations: compute the blocks' activations again in the backward pass instead of keeping them.
        shard: cut parameters, gradients and optimiser among the processes (FSDP) instead of keeping all in each.
        save_every: steps between two checkpoints.
        keep_checkpoints: how many of the last ones are kept; the best by mIoU is kept besides.
        validate_every: steps between two validations: a sheet of photos with their regions, with `validation` the mIoU.
        validation: folder of photos with masks: images/, masks/, classes.json.
        trackers: names of `segclip.train.metrics.TRACKERS`, which take what metrics.jsonl has too.
        workers: processes that read for each process that trains; they change no figure.
        seed: of everything random.
    """

    init_from: Weights = None
    model: ModelConfig | None = None
    cache: CacheConfig | None = None
    init_centers: Annotated[Literal["random", "k-means"], _formerly("--centers")] = "random"
    epochs: int = 10
    steps: int | None = None
    batch: int = 768
    micro_batch: int | None = None
    captions: Literal["one", "all"] = "all"
    crop_scale: tuple[float, float] = CROP_SCALE
    reduction: Reduction = "majority"
    tokens: int = 32
    losses: dict[str, float] = field(default_factory=lambda: dict(PAPER_WEIGHTS))
    soft_target_scale: Annotated[float | None, _formerly("--cache.likeness")] = None
    words_power: float = WORDS_POWER
    superpixel_loss: SuperpixelLoss = "reference"
    label_smoothing: float = LABEL_SMOOTHING
    frozen: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    lr: float = 4e-3
    slow_lr: float = 4e-6
    warmup: float = 0.15
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    max_grad_norm: Annotated[float, _formerly("--clip")] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    checkpoint_activations: bool = False
    shard: bool = False
    save_every: int = 500
    keep_checkpoints: Annotated[int, _formerly("--keep")] = 2
    validate_every: int = 1000
    validation: str | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    workers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        _check(vars(self))
        if not any(self.losses.values()):
            raise ValueError("no losses; give a weight above 0 to one or more of them, such as contrastive")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {low} {high}; give two shares, 0 < smallest <= largest <= 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas[0]} {self.betas[1]}; give two numbers from 0 to below 1")
        if self.cache and self.micro_batch:
            raise ValueError("cached features are small: leave out micro_batch")
        if self.cache and not self.init_from:
            raise ValueError("cached features need trained towers: name their model as init_from")

    @property
    def loss_settings(self) -> LossSettings:
        """What it sweeps of the paper's losses."""
        return LossSettings(self.soft_target_scale, self.superpixel_loss, self.label_smoothing, self.words_power)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Inverse of `to_json`, which also reads what 0.1 wrote. Raises ValueError for unknown or missing fields."""
        try:
            raw = _translate(json.loads(text))
            model = raw["model"] and ModelConfig.from_dict(raw["model"])
            if raw["cache"]:
                check_fields(CacheConfig, raw["cache"], _CACHE_RANGES, "cache.")
            cache = raw["cache"] and CacheConfig(**raw["cache"])
            lists = {name: tuple(value) for name, value in raw.items() if isinstance(value, list)}
            fields = {**raw, **lists, "model": model, "cache": cache}
            _check(fields)
            return cls(**fields)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a training recipe of segclip: {error}") from error


def _check(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a field of a TrainConfig, or a loss's weight, of another type or out of its range."""
    check_fields(TrainConfig, fields, _RANGES)
    for name, weight in fields.get("losses", {}).items():
        if not is_number(weight) or weight < 0:
            raise ValueError(f"weight {brief(weight)} of the loss {name}; give a number from 0 on")


# Names of 0.1.
_FORMER = {"start": "init_from", "centers": "init_centers", "clip": "max_grad_norm", "keep": "keep_checkpoints"}
# Of the cache, what runs of earlier versions learned from and no run does any more.
_GONE = {
    "mosaics": "mosaics",
    "half_size_prob": "photos at half size",
    "small": "photos at half size",
    "caption_words": "words in place of captions",
    "words": "words in place of captions",
}


def _translate(raw: dict[str, Any]) -> dict[str, Any]:
    """A recipe's JSON in today's names. 0.1 wrote the paper's model even where weights said what was trained."""
    former: dict[str, Any] = {"model": None} if raw.get("start") else {}
    for name in raw.get("cache") or ():
        if name in _GONE:
            raise ValueError(
                f"cache.{name}: this run learned from {_GONE[name]}, which this version no longer has; start anew in a "
                "new folder"
            )
    if isinstance(raw["losses"], list):
        former["losses"] = dict.fromkeys(raw["losses"], 1.0)
    for name in ("frozen", "slow"):
        if isinstance(raw[name], list):
            former[name] = [current_name(prefix) if isinstance(prefix, str) else prefix for prefix in raw[name]]
    return {_FORMER.get(name, name): value for name, value in raw.items()} | former
