"""`segclip export`: a model as one file for other runtimes."""

from pathlib import Path
from typing import Annotated

import tyro

from segclip import export as exporting
from segclip.checkpoints.loading import load
from segclip.checkpoints.variants import vary
from segclip.commands.options import HeadName
from segclip.commands.terminal import say
from segclip.text.labels import split_labels


def export(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    model: str = "mini",
    head: HeadName = None,
    grouping: str | None = None,
    centers: int | None = None,
    labels: tuple[str, ...] | None = None,
    background: float | None = None,
) -> int:
    """Write a model as one file that runs without this package, for any number of photos of any size.

    Its input `pixels` (B,3,H,W) is RGB of 0-1, minus CLIP's mean, by CLIP's standard deviation; H and W are multiples
    of the model's patch, for which the file's metadata has a number. examples/run_onnx.py runs one.

    Args:
        file: NAME.onnx, for ONNX Runtime; or NAME.pt2, for torch.export.load.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        head: Of a plain CLIP: see segclip segment.
        grouping: What makes regions of patches: see segclip regions.
        centers: How many clusters k-means makes.
        labels: Fold these labels in: the file gives a label map. Without, it gives `embedding`, `regions` and `soft`,
            from which any labels can be found.
        background: With labels, the paper's threshold in 0..1 below which a pixel is background, 0. Without, every
            pixel gets a label.
    """
    made = vary(load(model, "cpu"), head=head, grouping=grouping, centers=centers)
    exporting.export(made, file, labels and split_labels(labels), background=background)
    say(f"wrote {file}")
    return 0
