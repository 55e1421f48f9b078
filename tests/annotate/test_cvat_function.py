"""CVAT's own driver takes what the auto-annotation function finds."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
import skimage.data
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask
from helpers.small_model import small_model
from PIL import Image, ImageDraw

from segclip.annotate.annotator import Drawing
from segclip.annotate.cvat_function import CvatFunction, create
from segclip.annotate.polygons import clean_labels
from segclip.segment.segmenter import Segmenter

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
LABELS = ["cup", "table|desk"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(small_model())


def run_driver(function: CvatFunction, monkeypatch: pytest.MonkeyPatch, kind: str, **options: Any) -> list[Any]:
    """The shapes that `cvat-cli task auto-annotate` would upload for a task of one image; its server is not there."""
    media = SimpleNamespace(load_image=lambda: Image.fromarray(PHOTO))
    sample = SimpleNamespace(frame_name="a.jpg", frame_index=7, media=media)
    labels = [
        SimpleNamespace(name=name, id=number, type=kind, sublabels=[], attributes=[])
        for number, name in ((31, "table"), (32, "cup"))
    ]
    monkeypatch.setattr(driver, "TaskDataset", lambda *_, **__: SimpleNamespace(labels=labels, samples=[sample]))
    client = MagicMock()
    cvataa.annotate_task(client, 1, function, **options)
    return client.tasks.api.partial_update_annotations.call_args.kwargs["patched_labeled_data_request"].shapes


def expected(segmenter: Segmenter) -> np.ndarray:
    found = segmenter.segment(PHOTO, LABELS, presence=None).labels
    return clean_labels(found, Drawing().clean * found.size)


def test_masks_are_the_label_map(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    function = CvatFunction(segmenter, LABELS, presence=None)
    shapes = run_driver(function, monkeypatch, "mask")
    labels = np.zeros(PHOTO.shape[:2], int)
    for shape in shapes:
        assert (shape.frame, shape.type.value, shape.source) == (7, "mask", "auto") and 0 < shape.score <= 1
        labels[decode_mask(shape.points, image_width=150, image_height=100)] = {32: 1, 31: 2}[shape.label_id]
    np.testing.assert_array_equal(labels, expected(segmenter))
    assert len(shapes) == len(np.unique(labels[labels > 0])) > 0


@pytest.mark.parametrize(
    ("shapes", "kind", "options"), [("polygon", "polygon", {}), ("mask", "any", {"conv_mask_to_poly": True})]
)
def test_polygons(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, shapes: Any, kind: str, options: dict[str, Any]
) -> None:
    function = CvatFunction(segmenter, LABELS, shapes, Drawing(tolerance=0.0), presence=None)
    found = run_driver(function, monkeypatch, kind, **options)
    labels = expected(segmenter)
    assert found and {shape.type.value for shape in found} == {"polygon"}
    area = 0
    for shape in found:
        points = np.reshape(shape.points, (-1, 2))
        assert len(points) >= 3 and points.min() >= 0 and (points.max(axis=0) <= (150, 100)).all()
        fine = Image.new("1", (600, 400))
        ImageDraw.Draw(fine).polygon([(4 * x - 0.5, 4 * y - 0.5) for x, y in points], fill=1)
        inside = np.asarray(fine)[2::4, 2::4]
        assert (labels[inside] == {32: 1, 31: 2}[shape.label_id]).mean() > 0.98
        area += int(inside.sum())
    assert abs(area - (labels > 0).sum()) < 0.02 * labels.size


def test_shapes_below_the_confidence_are_left_out(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    function = CvatFunction(segmenter, LABELS, presence=None, background=None)
    scores = sorted(shape.score for shape in run_driver(function, monkeypatch, "mask"))
    kept = run_driver(function, monkeypatch, "mask", conf_threshold=scores[-1])
    assert [shape.score for shape in kept] == [score for score in scores if score == scores[-1]]
    assert run_driver(function, monkeypatch, "mask", conf_threshold=1.0) == []


def test_the_command_lines_parameters(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("sky\n")
    function = create("cup, table|desk", str(tmp_path / "labels.txt"), model=str(weights), background="none", clean=0.0)
    assert isinstance(function.spec, cvataa.DetectionFunctionSpec)
    assert [(one.name, one.id, one.type) for one in function.spec.labels] == [
        ("cup", 1, "mask"),
        ("table", 2, "mask"),
        ("sky", 3, "mask"),
    ]
    assert (function.background, function.presence, function.drawing) == (None, "auto", Drawing(clean=0.0))
    with pytest.raises(ValueError, match="shapes 'box'; give one of mask, polygon"):
        create("cup", shapes="box", model=str(weights))
    with pytest.raises(ValueError, match="no labels"):
        create(model=str(weights))


def test_without_the_sdk(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(ValueError, match=r'pip install "cvat-sdk>=2.80"'):
        CvatFunction(segmenter, ["cup"])
