"""A model as one file that runs without this package: ONNX, or a program of torch.export.

Axes: B photos, H W pixels, C centers, P patches, E embedding, K labels.
"""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.model.segclip import ImageOutput, SegCLIP
from segclip.segment.label_embeddings import LabelEmbedder
from segclip.segment.protocols.paper import region_scores
from segclip.text.labels import Label, check_labels
from segclip.text.labels import Labels as LabelSet
from segclip.text.prompts import PAPER_TEMPLATES
from segclip.utils.files import atomic
from segclip.utils.finite import not_finite
from segclip.utils.optional import require

MAX_PATCHES = 128  # in a side: 2,048 pixels for a ViT-B/16


class Regions(nn.Module):
    """Normalised pixels (B,3,H,W) -> embedding (B,E), regions (B,C,E) and soft (B,C,P), as `SegCLIP.encode_image`."""

    outputs = ("embedding", "regions", "soft")

    def __init__(self, model: SegCLIP) -> None:
        super().__init__()
        self.image = model.image

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode."""
        output = self.encode(pixels)
        return output.embedding, output.regions, output.soft

    def encode(self, pixels: Tensor) -> ImageOutput:
        """All that the model makes of the pixels."""
        return self.image.gather(self.image.encode_patches(pixels), pixels)


class Labels(Regions):
    """Normalised pixels (B,3,H,W) -> the label of each pixel (B,H,W), by the rules of the paper for one window."""

    outputs = ("labels",)

    def __init__(self, model: SegCLIP, labels: LabelSet, background: float | None) -> None:
        super().__init__(model)
        self.register_buffer("embeds", LabelEmbedder(model)(labels.all_words, PAPER_TEMPLATES))
        count = len(labels.names)
        own = [0 if label == count else label + 1 for label in labels.owners]  # words of the background are label 0
        self.register_buffer("label", torch.tensor(own if background is None else [0, *own]))
        self.scale = model.scale
        self.background, self.patch = background, model.config.image.patch
        self.each_patch = getattr(model.image.grouping, "each_patch", False)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B H W"]:
        """Label: 0 the background, i the i-th label."""
        output = self.encode(pixels)
        scores = region_scores(output, self.get_buffer("embeds"), self.scale, self.background)
        own = self.get_buffer("label")[scores.argmax(dim=-1)]
        height, width = pixels.shape[-2:]
        grid = height // self.patch, width // self.patch
        if self.each_patch:  # a map of each would be too many
            blocks = own.unflatten(1, grid).repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
            return blocks.to(torch.int32)
        maps = output.soft.unflatten(-1, grid)
        owner = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False).argmax(dim=1)
        return own.gather(1, owner.flatten(1)).unflatten(1, (height, width)).to(torch.int32)


@dataclass(frozen=True)
class Exported:
    """What an exporter writes.

    Attributes:
        program: takes normalised `pixels` (B,3,H,W); B, H and W are free.
        outputs: the names of what it gives.
        about: what whoever runs it must know, ready for JSON: patch, side, mean, std, scale, labels, background.
    """

    program: torch.export.ExportedProgram
    outputs: tuple[str, ...]
    about: dict[str, Any]


def export(
    model: SegCLIP, file: Path, labels: LabelSet | Sequence[Label] | None = None, *, background: float | None = None
) -> None:
    """Write a model for any number of photos of any size, sides being multiples of the patch.

    Args:
        model: on the CPU, in evaluation mode.
        file: its suffix is one of EXPORTERS: NAME.onnx, for ONNX Runtime and its kin; or NAME.pt2, for
            `torch.export.load`.
        labels: None: the file gives `embedding`, `regions` and `soft`, from which any labels can be found. Else it
            gives `labels`, a label map for these.
        background: with labels: the paper's threshold in 0..1 below which a pixel gets 0; None: every pixel gets one.

    Raises:
        ValueError: an unknown suffix; weights that are NaN or infinite; labels or a background that cannot be used; the
            extra `export` is not installed.
    """
    if file.suffix not in EXPORTERS:
        raise ValueError(f"{file}: export writes {' or '.join(EXPORTERS)}; name the file so")
    if bad := not_finite(model.state_dict()):
        raise ValueError(f"{file}: not written: NaN or infinite weights, such as {bad[0]}; take an earlier checkpoint")
    if background is not None and (labels is None or not 0 <= background <= 1):
        raise ValueError(f"background {background}; give a number in 0..1, together with labels")
    if labels is None:
        module = Regions(model)
    else:
        checked = check_labels(labels)
        module, labels = Labels(model, checked, background), checked.names
    patch, side = model.config.image.patch, model.config.image.side
    batch, rows, columns = (torch.export.Dim(name, min=1, max=MAX_PATCHES) for name in ("batch", "rows", "columns"))
    shapes = {"pixels": {0: batch, 2: patch * rows, 3: patch * columns}}
    # Two photos that are no squares: what is 1, or equal to another size, would be taken for a constant.
    example = torch.zeros(2, 3, side, side + patch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=shapes, strict=False)
    tower = model.image.tower
    about = {
        "patch": patch, "side": side, "mean": tower.mean, "std": tower.deviation, "scale": model.scale,
        "labels": labels, "background": background,
    }  # fmt: skip
    exported = Exported(program, module.outputs, about)
    with atomic(file) as temporary:
        EXPORTERS[file.suffix](exported, temporary)


def write_pt2(exported: Exported, file: Path) -> None:
    """A program of torch.export, with `about` in segclip.json."""
    with file.open("wb") as opened:
        torch.export.save(exported.program, opened, extra_files={"segclip.json": json.dumps(exported.about)})


def write_onnx(exported: Exported, file: Path) -> None:
    """ONNX, with `about` in its metadata, each value as JSON. Raises ValueError where the extra is not installed."""
    onnx = require("onnx", extra="export")
    require("onnxscript", extra="export")  # torch's exporter needs it
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            exported.program, dynamo=True, input_names=["pixels"], output_names=list(exported.outputs), verbose=False
        )
    assert converted is not None
    model = converted.model_proto
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in exported.about.items()})
    file.write_bytes(model.SerializeToString())


EXPORTERS: dict[str, Callable[[Exported, Path], None]] = {".onnx": write_onnx, ".pt2": write_pt2}
