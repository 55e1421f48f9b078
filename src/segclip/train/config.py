"""A training run: its recipe, as frozen dataclasses."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

from segclip.config import ModelConfig
from segclip.data.superpixels import Reduction
from segclip.losses import SuperpixelLoss


@dataclass(frozen=True)
class CacheConfig:
    """How a model learns over towers that stay as they are: from their features, computed once.

    Attributes:
        crops: fixed crops of each photo whose features are cached; every pass draws one of them.
        mosaics: how many photos share an image: each step draws one of these and gives the centers a mosaic of random
            patches of that many photos, so that regions must tell them apart; 1: each photo by itself.
        reconstructed: share of a batch that the masked branch sees: it costs three times what the plain one does.
        likeness: how much captions that mean alike share their target (see `segclip.losses.contrastive_loss`).
        small: share of the photos in mosaics of four or more that are seen at half their side, as things are in photos
            of many things.
        words: draw, half of the time, a word of a photo's captions in their place (see `segclip.train.caption_words`).
        folder: where the features are kept, so that runs over the same towers and photos can share them; None: in the
            run's own folder.
        seed: of the crops and masks; not the run's, so that runs with other seeds can share features.
    """

    crops: int = 1
    mosaics: tuple[int, ...] = (2, 4)
    reconstructed: float = 0.0625
    likeness: float = 12.0
    small: float = 0.0
    words: bool = False
    folder: str | None = None
    seed: int = 0


LossName = Literal["contrastive", "superpixel", "reconstruction"]


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the paper's (arXiv 2211.14813, training details).

    Attributes:
        start: weights to start from, as `segclip.load` takes them; None: `model`, untrained.
        model: what is trained where `start` is None.
        cache: learn from the cached features of frozen towers; None: train on the photos themselves.
        centers: "random": as `start` or the model's initialisation has them; "k-means": the grouping starts as two
            steps of k-means over what the trunk gives for some photos, and with cached features what names the regions
            as least squares from them to captions (see `segclip.train.initialization`).
        epochs: passes over the data.
        steps: end after so many steps; None: as the epochs give.
        batch: samples in a step, of all processes; the last incomplete batch of a pass is left out.
        micro_batch: samples that a process encodes at once; the step's losses and gradients are those of the whole
            batch nevertheless. None: all of its share.
        captions: "one": a pass has each photo once, with one of its captions drawn; "all": it has each caption once.
        reduction: superpixels to patches, see `segclip.data.superpixels.patch_superpixels`.
        tokens: of a caption, at most.
        losses: the parts of the loss, each of weight 1.
        superpixel_loss: see `segclip.losses.superpixel_loss`.
        frozen: names of parameters that stay as they are begin with one of these.
        slow: names of parameters that learn at `slow_lr` begin with one of these.
        lr: peak learning rate of all others, reached after `warmup` of the steps, then down to 0 by a cosine.
        slow_lr: peak learning rate of `slow`, on the same schedule.
        warmup: share of all steps.
        weight_decay: on all but biases.
        clip: ceiling of the gradient's global norm.
        precision: "bf16" computes in bfloat16 what bears it; parameters and losses stay in float32.
        checkpoint_activations: compute the blocks' activations again in the backward pass instead of keeping them.
        shard: cut parameters, gradients and optimiser among the processes (FSDP) instead of keeping all in each.
        save_every: steps between two checkpoints.
        keep: checkpoints that are kept; the best by mIoU is kept besides.
        validate_every: steps between two looks: a sheet of photos with their regions and, with `validation`, the mIoU.
        validation: folder of photos with masks: images/, masks/, classes.json.
        trackers: names of accelerate's trackers, such as tensorboard or wandb, beside metrics.jsonl.
        workers: processes that read for each process that trains; they change no figure.
        seed: of everything random.
    """

    start: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig | None = None
    centers: Literal["random", "k-means"] = "random"
    epochs: int = 10
    steps: int | None = None
    batch: int = 768
    micro_batch: int | None = None
    captions: Literal["one", "all"] = "all"
    reduction: Reduction = "majority"
    tokens: int = 32
    losses: tuple[LossName, ...] = ("contrastive", "superpixel", "reconstruction")
    superpixel_loss: SuperpixelLoss = "reference"
    frozen: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    lr: float = 4e-3
    slow_lr: float = 4e-6
    warmup: float = 0.15
    weight_decay: float = 0.05
    clip: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_activations: bool = False
    shard: bool = False
    save_every: int = 500
    keep: int = 2
    validate_every: int = 1000
    validation: str | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    workers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch", "micro_batch", "tokens", "save_every", "keep", "validate_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value}; give at least 1")
        if not self.losses:
            raise ValueError("no losses; give one or more of contrastive, superpixel, reconstruction")
        if self.cache and not 0 <= self.cache.small <= 1:
            raise ValueError(f"small {self.cache.small}; give a share in 0..1")
        for photos in self.cache.mosaics if self.cache else ():
            if photos < 1 or self.batch % photos:
                raise ValueError(f"mosaics of {photos} photos do not divide a batch of {self.batch}; change one")
        if self.cache and self.micro_batch:
            raise ValueError("cached features are small: leave out micro_batch")
        if self.cache and not self.start:
            raise ValueError("cached features need trained towers: name their model as start")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Inverse of `to_json`. Raises ValueError for unknown or missing fields."""
        try:
            raw = json.loads(text)
            model = ModelConfig.from_json(json.dumps(raw["model"]))
            cache = raw["cache"] and CacheConfig(**{**raw["cache"], "mosaics": tuple(raw["cache"]["mosaics"])})
            lists = {name: tuple(value) for name, value in raw.items() if isinstance(value, list)}
            return cls(**{**raw, **lists, "model": model, "cache": cache})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"not a training recipe of segclip: {error}") from error
