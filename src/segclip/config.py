"""What a model is, and what its losses are, as frozen dataclasses without torch."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from segclip.utils.messages import brief, shorten

CLIP_VOCABULARY = 49408  # CLIP's byte-pair encoding, start and end tokens included
BERT_VOCABULARY = 30522  # bert-base-uncased, which MiniLM sentence encoders use

# Smallest and largest whole number of each field, by its name. The upper ends are far above any model there is; they
# are there because a configuration comes with a file, which may be damaged or hostile, and what it asks for is built.
_RANGES: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("trunk_layers", "region_layers", "layers", "decoder_layers", "center_blocks"), (0, 1024)),
    **dict.fromkeys(("width", "embed", "heads", "decoder_heads", "centers", "context", "patch", "side"), (1, 65536)),
    "adapter": (0, 65536),
    "position_grid": (1, 4096),
    "vocabulary": (1, 1 << 24),
}
_LARGEST_MLP = 64  # mlp_ratio; CLIP's and DINOv2's are 4 to 5


@dataclass(frozen=True)
class ImageConfig:
    """Image tower: patches through frozen-size blocks, then centers, then blocks over the regions.

    Attributes:
        kind: "clip" (QuickGELU, norm before the blocks, class token dropped before the first block), "dinov2" (GELU,
            LayerScale, norm after the blocks, class token kept while they run), or another name in
            `segclip.model.towers.IMAGE_TOWERS`.
        width: channels D.
        trunk_layers: blocks over the patches.
        region_layers: blocks over the regions.
        patch: side of a patch in pixels.
        side: the model's own image side in pixels: what it was trained at and what windows are cut to.
        position_grid: patches along a side of the stored position embeddings.
        heads: of attention; None: one for each 64 channels.
        mlp_ratio: hidden channels of a block's MLP, in units of the width.
        activation: of a block's MLP, "quick_gelu" or "gelu"; None: the kind's own.
        class_token: whether CLIP's class token stays and comes out first, as a dense head needs it; the paper drops it.
    """

    kind: str = "clip"
    width: int = 768
    trunk_layers: int = 10
    region_layers: int = 2
    patch: int = 16
    side: int = 224
    position_grid: int = 14
    heads: int | None = None
    mlp_ratio: float = 4.0
    activation: str | None = None
    class_token: bool = False

    def __post_init__(self) -> None:
        _check_fields(ImageConfig, vars(self))


@dataclass(frozen=True)
class TextConfig:
    """Text tower.

    Attributes:
        kind: "clip" (causal, pre-norm, projected at the end token), "sentence" (BERT-like, post-norm, mean-pooled), or
            another name in `segclip.model.towers.TEXT_TOWERS`.
        width, layers, heads: of its transformer.
        context: the longest text in tokens.
        vocabulary: rows of the token embedding.
        mlp_ratio, activation: as the image tower's.
        tokenizer: "clip" or "sentence"; None: that of its kind.
        adapter: hidden channels of a residual network after the tower, by which texts come to where regions are
            (`segclip.model.layers.Adapter`); 0: there is none.
    """

    kind: str = "clip"
    width: int = 512
    layers: int = 12
    heads: int = 8
    context: int = 77
    vocabulary: int = CLIP_VOCABULARY
    mlp_ratio: float = 4.0
    activation: str | None = None
    tokenizer: str | None = None
    adapter: int = 0

    def __post_init__(self) -> None:
        _check_fields(TextConfig, vars(self))


@dataclass(frozen=True)
class ModelConfig:
    """A SegCLIP model; the default is the paper's, over CLIP ViT-B/16.

    Attributes:
        image, text: the towers.
        embed: width E of the space both towers are projected to.
        centers: number C of learnable centers, so of regions.
        decoder_layers: blocks of the reconstruction's decoder.
        grouping: what makes regions of patches: "centers" (the paper's), or another name in
            `segclip.model.grouping.GROUPINGS`.
        center_in_region: whether a region is what its center was plus the mean of its patches, as in the paper, or the
            mean alone. The center has seen the whole photo, so with it a region may say what is elsewhere.
        tau: temperature of the Gumbel-softmax, by which patches are given to centers in training.
        center_blocks: blocks in which the centers see the patches.
        mask_ratio: share of the patches that the masked branch does not see.
        decoder_heads: attention heads of the reconstruction's decoder.
        head: a dense head in place of the last `image.region_layers` blocks, of a CLIP without learned centers: a name
            in `segclip.model.dense.HEADS`; None: the blocks themselves.
        head_sigma: of the head "naclip": width of its Gaussian, in patches.
        affinity: the tower whose features say which patches belong together, for a head that asks; None: there is none.
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed: int = 512
    centers: int = 8
    decoder_layers: int = 3
    grouping: str = "centers"
    center_in_region: bool = True
    tau: float = 0.9
    center_blocks: int = 2
    mask_ratio: float = 0.75
    decoder_heads: int = 8
    head: str | None = None
    head_sigma: float = 5.0
    affinity: ImageConfig | None = None

    def __post_init__(self) -> None:
        _check_fields(ModelConfig, vars(self))
        image, text = self.image, self.text
        units = (
            ("image.width", image.width, image.heads or 64),
            ("text.width", text.width, text.heads),
            ("half of image.width", image.width // 2, self.decoder_heads),
        )
        for name, value, unit in units:
            if value % unit:
                raise ValueError(f"{name} {value} is not a multiple of {unit}; choose a width that is, or other heads")
        if image.side % image.patch:
            raise ValueError(f"image side {image.side} is not a multiple of the patch {image.patch}; change one")
        if self.tau <= 0:
            raise ValueError(f"tau {self.tau}; give a temperature above 0")
        if self.head_sigma <= 0:
            raise ValueError(f"head_sigma {self.head_sigma}; give a number of patches above 0")
        if self.head is not None and not (image.class_token and image.region_layers):
            raise ValueError(
                f"head {self.head!r} over an image tower without its class token or its last block; a dense head needs "
                "both: give image.class_token and at least one of image.region_layers"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio {self.mask_ratio}; give a share between 0 and 1, without the ends")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Inverse of `to_json`. Raises ValueError for unknown or missing fields, wrong types, and impossible sizes."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError too
            raise _no_configuration(error) from error
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Any) -> "ModelConfig":
        """Inverse of `dataclasses.asdict`. Raises ValueError as `from_json` does."""
        try:
            for kind, values in ((ImageConfig, raw["image"]), (TextConfig, raw["text"])):
                _check_fields(kind, values)
            towers: dict[str, Any] = {"image": ImageConfig(**raw["image"]), "text": TextConfig(**raw["text"])}
            if raw.get("affinity") is not None:
                towers["affinity"] = ImageConfig(**raw["affinity"])
            _check_fields(cls, raw | towers)
            return cls(**raw | towers)
        except (TypeError, KeyError, AttributeError) as error:
            raise _no_configuration(error) from error


def _no_configuration(error: Exception) -> ValueError:
    return ValueError(f"not a segclip model configuration: {shorten(str(error), 200)}")


def _check_fields(kind: type, values: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of another type than its field is declared with, or out of its range.

    Args:
        kind: the dataclass.
        values: by the names of its fields; the names themselves are not looked at.
    """
    prefix = {ImageConfig: "image.", TextConfig: "text."}.get(kind, "")
    for one in dataclasses.fields(kind):
        if one.name in values and (expected := _unmet(one, value := values[one.name])):
            raise ValueError(f"{prefix}{one.name} {brief(value)}; expected {expected}")


def _unmet(one: dataclasses.Field[Any], value: Any) -> str | None:
    """What a field takes, where the value is something else."""
    types: tuple[Any, ...] = get_args(one.type) or (one.type,)
    if value is None and type(None) in types:
        return None
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan  # in no range
    if int in types:
        low, high = _RANGES[one.name]
        good, expected = isinstance(value, int) and low <= number <= high, f"a whole number from {low} to {high}"
    elif one.name == "mlp_ratio":
        good, expected = 0 < number <= _LARGEST_MLP, f"a number above 0, to {_LARGEST_MLP}"
    elif float in types:
        good, expected = abs(number) < math.inf, "a number"
    else:
        good, expected = isinstance(value, types), f"a {types[0].__name__}"
    return None if good else expected


_VERSION_1 = re.compile(r"(^|\.)image\.(patch_embed|class_token|positions|norm_pre|trunk|norm_trunk)(?=$|\.)")


def current_name(name: str) -> str:
    """Today's name of a parameter, or of several by a prefix, that 0.1 named: its image tower had no prefix."""
    return _VERSION_1.sub(r"\1image.tower.\2", name)


SuperpixelLoss = Literal["reference", "one-softmax"]
WORDS_POWER = 4.0  # docs/lab-notes.md has what others give
LABEL_SMOOTHING = 0.1  # of "one-softmax": the usual (arXiv 1512.00567, section 7)


@dataclass(frozen=True)
class LossSettings:
    """What is swept of the losses: see `segclip.losses.contrastive_loss`, `superpixel_loss` and `words_loss`."""

    soft_target_scale: float | None = None
    superpixel_loss: SuperpixelLoss = "reference"
    label_smoothing: float = LABEL_SMOOTHING
    words_power: float = WORDS_POWER


PAPER_SETTINGS = LossSettings()
PAPER_WEIGHTS: Mapping[str, float] = {"contrastive": 1.0, "superpixel": 1.0, "reconstruction": 1.0}
