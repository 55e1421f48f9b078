"""Exports small models; a process of its own, as torch cannot trace through the type checks of the tests."""

import sys
from pathlib import Path

import torch

from helpers.small_model import CLIP, SENTENCE, small_model
from segclip.config import ModelConfig
from segclip.export import export
from segclip.model.segclip import SegCLIP

LABELS = ["cat", "dog", "grass"]


def varied_model(config: ModelConfig) -> SegCLIP:
    """A random model whose regions of one photo get different labels."""
    model = small_model(config)
    with torch.no_grad():
        model.image.grouping.centers.normal_(std=3.0)
        for parameter in model.image.region_blocks.parameters():
            parameter.mul_(0.1)
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, config in (("clip", CLIP), ("sentence", SENTENCE)):
        model = varied_model(config)
        export(model, folder / f"{name}.onnx")
        export(model, folder / f"{name}.pt2")
        export(model, folder / f"{name}-labels.onnx", LABELS)
        export(model, folder / f"{name}-background.onnx", LABELS, background=0.4)
