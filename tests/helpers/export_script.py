"""Exports small models; a process of its own, as torch cannot trace through the type checks of the tests."""

import json
import sys
from pathlib import Path

import torch

from helpers.small_model import CLIP, SENTENCE, small_model
from segclip.checkpoints.native import save_model
from segclip.cli import main
from segclip.config import ModelConfig
from segclip.export import EXPORTERS, Exported, export
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


def write_mine(exported: Exported, file: Path) -> None:
    """A format of someone else's."""
    inputs = [node.name for node in exported.program.graph.nodes if node.op == "placeholder"]
    file.write_text(json.dumps({"input": inputs[-1], "outputs": exported.outputs, "patch": exported.about["patch"]}))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, config in (("clip", CLIP), ("sentence", SENTENCE)):
        model = varied_model(config)
        export(model, folder / f"{name}.onnx")
        export(model, folder / f"{name}.pt2")
        export(model, folder / f"{name}-labels.onnx", LABELS)
        export(model, folder / f"{name}-background.onnx", LABELS, background=0.4)
    EXPORTERS[".mine"] = write_mine
    save_model(varied_model(CLIP), folder / "clip.safetensors")
    sys.exit(main(["export", str(folder / "clip.mine"), "--model", str(folder / "clip.safetensors")]))
