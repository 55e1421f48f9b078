"""An auto-annotation function for CVAT, by its SDK's interface: `cvat-cli task auto-annotate ID --function-module ...`.

The module is given to cvat-cli, which calls `create` with the parameters of its command line. docs/annotate.md has it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from segclip.annotate.annotator import Drawing, annotate
from segclip.annotate.segments import Segment
from segclip.segment import coco
from segclip.segment.background import Background, check_background
from segclip.segment.presence import Presence, check_presence
from segclip.segment.segmenter import Segmenter
from segclip.text.label_files import read_labels
from segclip.text.labels import check_labels, split_labels
from segclip.utils.optional import require

SHAPES = ("mask", "polygon")
PACKAGE = "cvat-sdk>=2.80"  # older ones are untried


class CvatFunction:
    """What CVAT's driver asks: `spec`, the labels that there are, and `detect`, the shapes in an image.

    Args:
        segmenter: the model and the protocol.
        labels: what to look for, as for `Segmenter.segment`; their names must be those of the task's labels.
        shapes: "mask": one for each label; "polygon": one for each connected component.
        drawing: how they are drawn.
        background, presence: as for `Segmenter.segment`.

    Raises:
        ValueError: invalid labels or shapes; cvat-sdk or pycocotools is not installed.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        labels: Sequence[str],
        shapes: str = "mask",
        drawing: Drawing | None = None,
        background: Background = "auto",
        presence: Presence = "auto",
    ) -> None:
        if shapes not in SHAPES:
            raise ValueError(f"shapes {shapes!r}; give one of {', '.join(SHAPES)}")
        self._sdk = require("cvat_sdk.auto_annotation", package=PACKAGE)
        self._encode_mask = require("cvat_sdk.masks", package=PACKAGE).encode_mask
        coco.pycocotools_mask()
        self.segmenter, self.labels, self.shapes = segmenter, check_labels(labels), shapes
        self.drawing = drawing or Drawing()
        self.background: Background = background
        self.presence: Presence = presence
        specs = [self._sdk.label_spec(name, i, type=shapes) for i, name in enumerate(self.labels.names, 1)]
        self.spec = self._sdk.DetectionFunctionSpec(labels=specs)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The shapes in an image, the largest segment first.

        Args:
            context: CVAT's; segments whose mean score is below its `conf_threshold` are left out, and with
                `conv_mask_to_poly` masks become polygons.
            image: a frame of the task.
        """
        result = self.segmenter.segment(image, self.labels, background=self.background, presence=self.presence)
        found = annotate(result, context.frame_name, "", self.drawing, {}).segments
        size = found.height, found.width
        polygons = self.shapes == "polygon" or context.conv_mask_to_poly
        shapes = []
        for segment in found.foreground():
            if segment.score >= (context.conf_threshold or 0.0):
                shapes += self._polygons(segment) if polygons else [self._mask(segment, size)]
        return shapes

    def _polygons(self, segment: Segment) -> list[Any]:
        return [self._sdk.polygon(segment.index, corners, score=segment.score) for corners in segment.polygons]

    def _mask(self, segment: Segment, size: tuple[int, int]) -> Any:
        mask = coco.decode_rle(segment.counts, size)
        return self._sdk.mask(segment.index, self._encode_mask(mask, segment.box), score=segment.score)


def create(
    labels: str = "",
    labels_file: str = "",
    shapes: str = "mask",
    model: str = "mini",
    device: str = "auto",
    protocol: str = "open",
    background: str = "auto",
    presence: str = "auto",
    clean: float = Drawing.clean,
    tolerance: float = Drawing.tolerance,
) -> CvatFunction:
    """The function that cvat-cli runs, from its `--function-parameter`s.

    Args:
        labels: parted by commas: "cat,potted plant".
        labels_file: a file with more of them, a label a line.
        shapes: mask or polygon.
        model, device, protocol, background, presence: as for `segclip annotate`.
        clean, tolerance: see `segclip.annotate.annotator.Drawing`.

    Raises:
        ValueError: what cannot be used.
    """
    asked = (*split_labels((labels,) if labels else ()), *(read_labels(Path(labels_file)) if labels_file else ()))
    drawing = Drawing(clean, tolerance)
    wanted = check_background(background), check_presence(presence)
    return CvatFunction(Segmenter(model, protocol, device=device), asked, shapes, drawing, *wanted)
