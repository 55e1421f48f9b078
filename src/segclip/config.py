"""What a model is: sizes and kinds of its towers, as frozen dataclasses without torch."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

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
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"not a segclip model configuration: {error}") from error

    @classmethod
    def from_dict(cls, raw: Any) -> "ModelConfig":
        """Inverse of `dataclasses.asdict`. Raises ValueError for unknown or missing fields."""
        try:
            return cls(**{**raw, "image": ImageConfig(**raw["image"]), "text": TextConfig(**raw["text"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a segclip model configuration: {error}") from error
