"""What a model is: sizes and kinds of its towers, as frozen dataclasses without torch."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

CLIP_VOCABULARY = 49408  # CLIP's byte-pair encoding, start and end tokens included
BERT_VOCABULARY = 30522  # bert-base-uncased, which MiniLM sentence encoders use


@dataclass(frozen=True)
class ImageConfig:
    """Image tower: patches through frozen-size blocks, then centers, then blocks over the regions.

    Attributes:
        kind: "clip" (QuickGELU, norm before the blocks, class token dropped before the first block) or
            "dinov2" (GELU, LayerScale, norm after the blocks, class token kept while they run).
        width: channels D; attention has D/64 heads.
        trunk_layers: blocks over the patches.
        region_layers: blocks over the regions.
        patch: side of a patch in pixels.
        side: the model's own image side in pixels: what it was trained at and what windows are cut to.
        position_grid: patches along a side of the stored position embeddings.
    """

    kind: Literal["clip", "dinov2"] = "clip"
    width: int = 768
    trunk_layers: int = 10
    region_layers: int = 2
    patch: int = 16
    side: int = 224
    position_grid: int = 14

    @property
    def heads(self) -> int:
        return self.width // 64


@dataclass(frozen=True)
class TextConfig:
    """Text tower.

    Attributes:
        kind: "clip" (causal, pre-norm, projected at the end token) or "sentence" (BERT-like, post-norm, mean-pooled).
        width, layers, heads: of its transformer.
        context: the longest text in tokens.
        vocabulary: rows of the token embedding.
    """

    kind: Literal["clip", "sentence"] = "clip"
    width: int = 512
    layers: int = 12
    heads: int = 8
    context: int = 77
    vocabulary: int = CLIP_VOCABULARY


@dataclass(frozen=True)
class ModelConfig:
    """A SegCLIP model; the default is the paper's, over CLIP ViT-B/16.

    Attributes:
        image, text: the towers.
        embed: width E of the space both towers are projected to.
        centers: number C of learnable centers, so of regions.
        decoder_layers: blocks of the reconstruction's decoder.
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed: int = 512
    centers: int = 8
    decoder_layers: int = 3

    def __post_init__(self) -> None:
        image, text = self.image, self.text
        for name, value, unit in (("image.width", image.width, 64), ("text.width", text.width, text.heads)):
            if value % unit:
                raise ValueError(f"{name} {value} is not a multiple of {unit}; choose a width that is")
        if image.side % image.patch:
            raise ValueError(f"image side {image.side} is not a multiple of the patch {image.patch}; change one")
        if text.kind == "sentence" and text.width != self.embed:
            raise ValueError(
                f"a sentence tower has no projection: embed {self.embed} must equal its width {text.width}"
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Inverse of `to_json`. Raises ValueError for unknown or missing fields."""
        try:
            raw = json.loads(text)
            return cls(**{**raw, "image": ImageConfig(**raw["image"]), "text": TextConfig(**raw["text"])})
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"not a segclip model configuration: {error}") from error


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
        words: draw, half of the time, a word of a photo's captions in their place (see `segclip.train.words`).
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
SuperpixelLoss = Literal["reference", "one-softmax"]
Reduction = Literal["majority", "reference"]


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the paper's (arXiv 2211.14813, training details).

    Attributes:
        start: weights to start from, as `segclip.load` takes them; None: `model`, untrained.
        model: what is trained where `start` is None.
        cache: learn from the cached features of frozen towers; None: train on the photos themselves.
        centers: "random": as `start` or the model's initialisation has them; "k-means": the grouping starts as two
            steps of k-means over what the trunk gives for some photos, and with cached features what names the regions
            as least squares from them to captions (see `segclip.train.start`).
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
