"""Towers: pixels -> patches, token ids -> embeddings; the tables of those that a configuration can name.

Anyone can add one: IMAGE_TOWERS["mine"] = MyTower, whose name is `ImageConfig.kind`. An image tower is made of an
ImageConfig and says of itself

    forward(pixels (B,3,H,W), keep (B,V) | None) -> patches (B,P,D), or (B,V,D) of the patches `keep` alone; for the
        protocol `dense`, with the keyword `offset` too (see `inputs.resize_positions`)
    trunk: the module whose weights make its features what they are; frozen ones are cached
    heads: of attention, for what is built over it
    region_block(): a new block over regions (B,C,D), as it would go on itself
    mean, deviation: of the pixels that it takes, RGB of 0-1
    idle: names of parameters that nothing is computed from
    initialize_inputs(): draws what stands before the trunk, when all else is drawn (`segclip.model.layers.initialize`)

A text tower is made of a ModelConfig; its forward takes token ids (B,L) and gives embeddings (B,E), not normalised.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from segclip.config import ImageConfig, ModelConfig
from segclip.model.towers.clip import ClipImageTower, ClipTextTower
from segclip.model.towers.dinov2 import Dinov2ImageTower
from segclip.model.towers.sentence import SentenceTextTower

IMAGE_TOWERS: dict[str, Callable[[ImageConfig], Any]] = {"clip": ClipImageTower, "dinov2": Dinov2ImageTower}
TEXT_TOWERS: dict[str, Callable[[ModelConfig], nn.Module]] = {"clip": ClipTextTower, "sentence": SentenceTextTower}
