"""Photos -> what annotation files say of them.

Axes: H W pixels.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray
from PIL import Image

from segclip.annotate.formats.writers import PhotoRegions, Region, yolo_lines
from segclip.annotate.polygons import clean_labels, outlines
from segclip.segment import coco
from segclip.segment.background import Background
from segclip.segment.encoder import DType
from segclip.segment.many_photos import segment_all
from segclip.segment.result import Found, Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.utils.failures import Failed

Named = Sequence[tuple[Path, str]]  # photos, each with the stem of its own files
Results = Iterator[tuple[Path, "Annotated | Failed"]]  # each photo, and what it gave or why it failed

DIGITS = 4  # of scores: more would differ from machine to machine
# A photo's own files, with its stem.
MASK, PANOPTIC, YOLO = "masks/{}.png", "panoptic/{}.png", "yolo/labels/{}.txt"


@dataclass(frozen=True)
class Drawing:
    """How a label map becomes shapes.

    Attributes:
        clean: share (0-1) of the photo's area under which a connected piece, of a label or of the background, is
            given to its neighbour.
        tolerance: how far a polygon may lie from the pixels' edges, in pixels; 0: along them exactly.
    """

    clean: float = 0.0005
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 0.1:
            raise ValueError(f"clean {self.clean}; give a share of the photo's area in 0..0.1, such as 0.0005")
        if not 0 <= self.tolerance <= 100:
            raise ValueError(f"tolerance {self.tolerance}; give pixels in 0..100, such as 1")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        labels: what to look for.
        model: as `segclip.load` takes it.
        device: auto, cpu, cuda, mps ...
        protocol, background, dtype: as for `segclip.Segmenter`.
        drawing: of the shapes.
    """

    labels: tuple[str, ...]
    model: str = "mini"
    device: str = "auto"
    protocol: str = "open"
    background: Background = "auto"
    dtype: DType = "float32"
    drawing: Drawing = field(default_factory=Drawing)


@dataclass(frozen=True)
class Annotated:
    """What a photo gives: its regions, and its own files by their names."""

    regions: PhotoRegions
    files: dict[str, bytes]


class Annotator:
    """Annotates photos; it has the model loaded.

    Raises:
        ValueError: a model or device that cannot be used.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.segmenter = Segmenter(request.model, request.protocol, device=request.device, dtype=request.dtype)

    def __call__(self, named: Named) -> Results:
        """Annotate photos, reading and drawing while the model works."""
        request = self.request
        return segment_all(self.segmenter, named, request.labels, request.background, self._finish)

    def _finish(self, result: Segmentation, path: Path, stem: str) -> Annotated | Failed:
        try:
            return annotate(result, path.name, stem, self.request.drawing)
        except MemoryError:
            return Failed(str(path), "out of memory; scale the photo down")


def annotate(result: Segmentation, photo: str, stem: str, drawing: Drawing) -> Annotated:
    """Clean a segmentation, and make of it regions with run lengths and polygons, and the photo's own files.

    Args:
        result: of the photo.
        photo: its file name.
        stem: of its own files.
        drawing: how.

    Raises:
        ValueError: pycocotools is not installed.
    """
    height, width = result.labels.shape
    labels = clean_labels(result.labels, drawing.clean * result.labels.size)
    clean = replace(result, labels=labels)
    regions = tuple(_region(clean, found, drawing.tolerance) for found in clean.found())
    annotated = PhotoRegions(photo, stem, width, height, regions)
    files = {
        MASK: _png(clean.index_image()),
        PANOPTIC: _png(Image.fromarray(_panoptic(labels))),
        YOLO: yolo_lines(annotated).encode(),
    }
    return Annotated(annotated, {name.format(stem): data for name, data in files.items()})


def _region(result: Segmentation, found: Found, tolerance: float) -> Region:
    mask = result.labels == found.index
    counts, polygons = "", []
    if found.index:
        left, top, right, bottom = found.box
        rings = outlines(mask[top:bottom, left:right], tolerance)
        polygons = [(ring + np.array([left, top])).ravel().tolist() for ring in rings]
        counts = coco.encode_rle(mask)["counts"]
    score, share = round(found.score, DIGITS), round(found.share, DIGITS + 2)
    return Region(found.index, found.label, int(mask.sum()), share, score, found.box, counts, polygons)


def _panoptic(labels: Int[ndarray, "H W"]) -> UInt8[ndarray, "H W 3"]:
    """COCO's colours: the label's index is red + 256 green."""
    return np.stack([labels % 256, labels // 256 % 256, labels // 65536], axis=-1).astype(np.uint8)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
