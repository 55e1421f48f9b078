"""Photos -> what annotation files say of them, and their own files.

Axes: H W pixels.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from segclip.annotate.formats import FORMATS
from segclip.annotate.formats.format import Format
from segclip.annotate.polygons import clean_labels, outlines
from segclip.annotate.segments import PhotoSegments, Segment
from segclip.segment import coco
from segclip.segment.background import Background
from segclip.segment.encoder import DType
from segclip.segment.many_photos import segment_all
from segclip.segment.presence import Presence
from segclip.segment.result import Found, Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import Labels
from segclip.utils.failures import Failed

Named = Sequence[tuple[Path, str]]  # photos, each with the stem of its own files
Results = Iterator[tuple[Path, "Annotated | Failed"]]  # each photo, and what became of it

DIGITS = 4  # of scores: more would differ from machine to machine


@dataclass(frozen=True)
class Drawing:
    """How a label map becomes shapes.

    Attributes:
        clean: share (0-1) of the photo's area under which a connected component, of a label or of the background, is
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
        head: as for `segclip.Segmenter`.
        device: auto, cpu, cuda, mps ...
        protocol, background, presence, dtype: as for `segclip.Segmenter`.
        drawing: of the shapes.
    """

    labels: Labels
    model: str = "mini"
    head: str | None = None
    device: str = "auto"
    protocol: str = "open"
    background: Background = "auto"
    presence: Presence = "auto"
    dtype: DType = "float32"
    drawing: Drawing = field(default_factory=Drawing)


@dataclass(frozen=True)
class Annotated:
    """What a photo gives: its segments, and its own files by their names."""

    segments: PhotoSegments
    files: dict[str, bytes]


class Annotator:
    """Annotates photos; it has the model loaded.

    Args:
        request: what is asked for.
        formats: whose files are made of each photo.

    Raises:
        ValueError: a model or device that cannot be used.
    """

    def __init__(self, request: Request, formats: Mapping[str, Format] = FORMATS) -> None:
        self.request, self.formats = request, formats
        self.segmenter = Segmenter(
            request.model, request.protocol, head=request.head, device=request.device, dtype=request.dtype
        )

    def __call__(self, named: Named) -> Results:
        """Annotate photos, reading and drawing while the model works."""
        request = self.request
        return segment_all(self.segmenter, named, request.labels, request.background, request.presence, self._finish)

    def _finish(self, result: Segmentation, path: Path, stem: str) -> Annotated:
        return annotate(result, path.name, stem, self.request.drawing, self.formats)


def annotate(
    result: Segmentation, photo: str, stem: str, drawing: Drawing, formats: Mapping[str, Format] = FORMATS
) -> Annotated:
    """Clean a segmentation, and make of it segments with run lengths and polygons, and the photo's own files.

    Args:
        result: of the photo.
        photo: its file name.
        stem: of its own files.
        drawing: how.
        formats: whose files are made.

    Raises:
        ValueError: pycocotools is not installed.
    """
    height, width = result.labels.shape
    labels = clean_labels(result.labels, drawing.clean * result.labels.size)
    clean = replace(result, labels=labels)
    segments = tuple(_segment(clean, found, drawing.tolerance) for found in clean.found())
    described = PhotoSegments(photo, stem, width, height, segments)
    makers = {name: make for one in formats.values() for name, make in one.photo_files.items()}
    files = {name.format(stem): make(clean, described) for name, make in makers.items()}
    suffix = Path(photo).suffix
    for one in formats.values():
        if (name := one.photo_name(stem, suffix)) and not one.links(suffix):
            files[name] = _encode_photo(result)
    return Annotated(described, files)


def _encode_photo(result: Segmentation) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(result.photo).save(buffer, "PNG")
    return buffer.getvalue()


def _segment(result: Segmentation, found: Found, tolerance: float) -> Segment:
    mask = result.labels == found.index
    counts, polygons = "", []
    if found.index:
        left, top, right, bottom = found.box
        rings = outlines(mask[top:bottom, left:right], tolerance)
        polygons = [(ring + np.array([left, top])).ravel().tolist() for ring in rings]
        counts = coco.encode_rle(mask)["counts"]
    score, share = round(found.score, DIGITS), round(found.share, DIGITS + 2)
    return Segment(found.index, found.label, int(mask.sum()), share, score, found.box, counts, polygons)
