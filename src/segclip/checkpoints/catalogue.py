"""Models that are known to open, by name or hub id: what they are, their licences, and what was published of them.

The list is for choosing; any other CLIP with a plain ViT opens as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from segclip.config import CLIP_VOCABULARY

SETS = ("voc21", "context60", "object")  # VOC 2012 and PASCAL Context with background, COCO-Object


@dataclass(frozen=True)
class Figure:
    """A published result.

    Attributes:
        head: how the weights were used: "segclip" (its own grouping), or a head that needs no training.
        miou: in percent, by the names of `SETS`; those alone that were published.
        protocol: how photos were cut and labels put into words.
        source: where the figures stand.
    """

    head: str
    miou: Mapping[str, float]
    protocol: str
    source: str


@dataclass(frozen=True)
class Listed:
    """A model of the list.

    Attributes:
        name: that `segclip.load` and `--model` take.
        image, text: its towers.
        parameters: of both towers and what joins them.
        licence: of the weights.
        data: that it was trained on.
        figures: published of these very weights.
    """

    name: str
    image: str
    text: str
    parameters: int
    licence: str
    data: str
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Shape:
    """Sizes of a CLIP with plain transformers (arXiv 2103.00020, tables 19 and 20; OpenCLIP's model_configs).

    Attributes:
        width, layers, patch, side, hidden: of the image tower.
        text_width, text_layers: of the text tower, whose hidden channels are four times its width.
        embed: width that both are projected to.
    """

    width: int
    layers: int
    patch: int
    side: int
    hidden: int
    text_width: int
    text_layers: int
    embed: int

    def parameters(self) -> int:
        """Of both towers, and the temperature."""
        image = self.width * (3 * self.patch**2 + 1 + (1 + (self.side // self.patch) ** 2) + 4 + self.embed)
        text = self.text_width * (CLIP_VOCABULARY + 77 + 2 + self.embed)
        return (
            image
            + self.layers * _block(self.width, self.hidden)
            + text
            + self.text_layers * _block(self.text_width, 4 * self.text_width)
            + 1
        )


def _block(width: int, hidden: int) -> int:
    """Attention of four matrices, an MLP of two, each with a bias, and two norms."""
    return 4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width


SHAPES = {
    "ViT-B/32": Shape(768, 12, 32, 224, 3072, 512, 12, 512),
    "ViT-B/16": Shape(768, 12, 16, 224, 3072, 512, 12, 512),
    "ViT-L/14": Shape(1024, 24, 14, 224, 4096, 768, 12, 768),
    "ViT-L/14, 336 pixels": Shape(1024, 24, 14, 336, 4096, 768, 12, 768),
    "ViT-H/14": Shape(1280, 32, 14, 224, 5120, 1024, 24, 1024),
    "ViT-g/14": Shape(1408, 40, 14, 224, 6144, 1024, 24, 1024),
    "ViT-bigG/14": Shape(1664, 48, 14, 224, 8192, 1280, 32, 1280),
}

OPENAI_LICENCE = "MIT (OpenAI/CLIP; its model card calls deployed use out of scope)"
OPENAI_DATA = "400 million pairs of the web, not published"
LAION_2B = "LAION-2B, English"
DATACOMP = "DataComp-1B"

RESCLIP, TRIDENT = "ResCLIP's README", "Trident's README"
WINDOWS = "short side 336, windows of 224 every 112, 80 templates, 26 words for VOC's background"
IN_TABLE = "that of the table it is taken from"


def _figure(head: str, voc21: float, context60: float, coco: float, protocol: str, source: str) -> Figure:
    return Figure(head, dict(zip(SETS, (voc21, context60, coco), strict=True)), protocol, source)


SEGCLIP_FIGURES = (
    _figure("segclip", 52.6, 24.7, 26.5, "that of the paper: `--protocol paper`", "arXiv 2211.14813 and its citations"),
)
B16_FIGURES = (
    _figure("none (plain CLIP)", 16.2, 7.7, 5.5, IN_TABLE, RESCLIP),
    _figure("maskclip", 38.8, 23.6, 20.6, IN_TABLE, RESCLIP),
    _figure("maskclip", 43.4, 23.2, 20.6, IN_TABLE, TRIDENT),
    _figure("sclip", 59.1, 30.4, 30.5, IN_TABLE, RESCLIP),
    _figure("sclip", 59.6, 31.7, 33.5, WINDOWS, "SCLIP's README"),
    _figure("clearclip", 51.8, 32.6, 33.0, IN_TABLE, RESCLIP),
    _figure("naclip", 58.9, 32.2, 33.2, IN_TABLE, RESCLIP),
    _figure("naclip, with PAMR", 64.1, 35.0, 36.2, f"{WINDOWS}; VOC21 whole; PAMR, 10 steps", "NACLIP's README"),
    _figure("proxy, with DINO", 61.3, 35.3, 37.5, IN_TABLE, TRIDENT),
)
L14_FIGURES = (
    _figure("sclip", 44.4, 22.3, 24.9, IN_TABLE, RESCLIP),
    _figure("clearclip", 48.7, 28.3, 29.7, IN_TABLE, RESCLIP),
    _figure("naclip", 52.2, 28.7, 29.9, IN_TABLE, RESCLIP),
)


def _clip(name: str, image: str, licence: str, data: str, figures: tuple[Figure, ...] = ()) -> Listed:
    shape = SHAPES[image]
    text = f"{shape.text_layers} layers of {shape.text_width}"
    return Listed(name, image, text, shape.parameters(), licence, data, figures)


CATALOGUE: tuple[Listed, ...] = (
    Listed(
        "mini",
        "DINOv2 ViT-S/14 with SegCLIP's grouping",
        "MiniLM-L6 with an adapter",
        55_089_085,
        "for research and trials: its model card tells why",
        "photos with captions, over frozen towers",
    ),
    Listed(
        "vit-b16",
        "ViT-B/16 with SegCLIP's grouping",
        "12 layers of 512",
        188_723_913,
        "none given",
        "CC3M and COCO's captions, from OpenAI's ViT-B/16",
        SEGCLIP_FIGURES,
    ),
    _clip("openai/clip-vit-base-patch16", "ViT-B/16", OPENAI_LICENCE, OPENAI_DATA, B16_FIGURES),
    _clip("openai/clip-vit-base-patch32", "ViT-B/32", OPENAI_LICENCE, OPENAI_DATA),
    _clip("openai/clip-vit-large-patch14", "ViT-L/14", OPENAI_LICENCE, OPENAI_DATA, L14_FIGURES),
    _clip("openai/clip-vit-large-patch14-336", "ViT-L/14, 336 pixels", OPENAI_LICENCE, OPENAI_DATA),
    _clip("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "ViT-B/16", "MIT", LAION_2B),
    _clip("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B/32", "MIT", LAION_2B),
    _clip("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "ViT-L/14", "MIT", LAION_2B),
    _clip("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "ViT-H/14", "MIT", LAION_2B),
    _clip("laion/CLIP-ViT-g-14-laion2B-s34B-b88K", "ViT-g/14", "MIT", LAION_2B),
    _clip("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "ViT-bigG/14", "MIT", LAION_2B),
    _clip("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "ViT-B/16", "MIT", DATACOMP),
    _clip("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "ViT-B/32", "MIT", DATACOMP),
    _clip("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "ViT-L/14", "MIT", DATACOMP),
    _clip(
        "facebook/metaclip-b16-400m", "ViT-B/16", "CC-BY-NC-4.0: no commercial use", "400 million pairs of Common Crawl"
    ),
)
