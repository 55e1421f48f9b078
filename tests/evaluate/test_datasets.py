"""The benchmarks' downloads, each in its own layout and encoding; what is wrong in them is named."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_files import (
    SIZE,
    write_ade,
    write_cityscapes,
    write_coco_instances,
    write_coco_maps,
    write_context,
    write_folder,
    write_list,
    write_mask,
    write_photo,
    write_voc,
)  # fmt: skip

from segclip.cli import main
from segclip.evaluate.datasets import DATASETS, open_benchmark
from segclip.evaluate.datasets.ade20k import ADE150
from segclip.evaluate.datasets.benchmark import Benchmark, MaskError, class_values, match_stems, png_reader
from segclip.evaluate.datasets.cityscapes import CITYSCAPES19
from segclip.evaluate.datasets.coco_stuff import COCO_STUFF, COCO_THINGS
from segclip.evaluate.evaluator import words_of
from segclip.text.labels import check_labels


@pytest.mark.parametrize(
    ("name", "write", "classes", "expected"),
    [
        ("voc2012", write_voc, 21, ["background", "aeroplane", "monitor", None]),
        ("context60", partial(write_context, kind="converted"), 60, ["background", "airplane", "bag", "wood"]),
        ("context60", partial(write_context, kind="png"), 60, ["background", "airplane", "bag", "wood"]),
        ("context60", partial(write_context, kind="mat"), 60, ["background", "airplane", "bag", "wood"]),
        ("context59", partial(write_context, kind="converted"), 59, [None, "airplane", "bag", "wood"]),
        ("context59", partial(write_context, kind="png"), 59, [None, "airplane", "bag", "wood"]),
        ("context59", partial(write_context, kind="mat"), 59, [None, "airplane", "bag", "wood"]),
        ("coco-object", write_coco_maps, 81, ["person", "toothbrush", "background", "background", "background"]),
        ("coco-stuff", write_coco_maps, 171, ["person", "toothbrush", "banner", "wood", None]),
        ("ade20k", write_ade, 150, [None, "wall", "flag"]),
        ("cityscapes", write_cityscapes, 19, [None, "road", "bicycle", None]),
    ],
)
def test_sets_in_their_own_layout(
    tmp_path: Path, name: str, write: Callable[[Path], None], classes: int, expected: list[str | None]
) -> None:
    """Stripes of values, as the download has them, mean these classes."""
    write(tmp_path)
    benchmark = open_benchmark(name, tmp_path)
    assert (benchmark.name, benchmark.split, len(benchmark.names)) == (name, "val", classes)
    (pair,) = benchmark.pairs
    photo, mask = benchmark.load(pair)
    assert photo.shape == (*SIZE, 3) and mask.dtype == np.uint8
    found = mask[0, [(2 * i + 1) * SIZE[1] // (2 * len(expected)) for i in range(len(expected))]]
    assert [None if i == 255 else benchmark.names[i] for i in found] == expected
    assert (mask == mask[0]).all()


def test_instances_are_drawn_the_small_on_top(tmp_path: Path) -> None:
    write_coco_instances(tmp_path)
    benchmark = open_benchmark("coco-object", tmp_path)
    mask, empty = (benchmark.load(pair)[1] for pair in benchmark.pairs)
    names = [[benchmark.names[mask[y, x]] for x in (5, 15, 25, 45, 55)] for y in (5, 15)]
    assert names == [
        ["person", "cat", "cat", "cat", "background"],
        ["person", "cat", "sports ball", "cat", "background"],
    ]
    assert (mask == 33).sum() == 100 and (empty == 0).all()


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    benchmark = open_benchmark("folder", write_folder(tmp_path, (0, 1, 255), (2, 2), names=("sky", "sea", "land")))
    assert benchmark.names == ("sky", "sea", "land") and not benchmark.background
    assert [np.unique(benchmark.load(pair)[1]).tolist() for pair in benchmark.pairs] == [[0, 1, 255], [2]]


def test_a_set_that_is_not_there_says_what_was_expected(tmp_path: Path) -> None:
    hints = {
        "voc2012": r"ImageSets/Segmentation/val\.txt",
        "context60": r"ImageSets/SegmentationContext/val\.txt",
        "context59": r"ImageSets/SegmentationContext/val\.txt",
        "coco-object": "val2017",
        "coco-stuff": "val2017",
        "ade20k": "annotations/validation",
        "cityscapes": "gtFine/val",
        "folder": r"classes\.json",
    }
    assert hints.keys() == set(DATASETS)
    for name in DATASETS:
        with pytest.raises(ValueError, match=f"expected .*{hints[name]}"):
            open_benchmark(name, tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        open_benchmark("voc2012", tmp_path / "missing")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        open_benchmark("voc2012", tmp_path, "test")
    (tmp_path / "val2017").mkdir()
    with pytest.raises(ValueError, match=r"expected stuffthingmaps/val2017/\*\.png or annotations/instances_val2017"):
        open_benchmark("coco-object", tmp_path)
    with pytest.raises(ValueError, match="unpack stuffthingmaps_trainval2017"):
        open_benchmark("coco-stuff", tmp_path)
    write_list(tmp_path / "VOC2010/ImageSets/Main/val.txt", "a")
    with pytest.raises(ValueError, match="SegmentationClassContext"):
        open_benchmark("context60", tmp_path)
    write_list(tmp_path / "VOC2012/ImageSets/Segmentation/val.txt", "../../secret")
    with pytest.raises(ValueError, match=r"not '\.\./\.\./secret'"):
        open_benchmark("voc2012", tmp_path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda root: write_mask(root / "masks/0.png", 0, 3, 9), r"masks/0\.png: has the values 3, 9, .* 0 to 2, 255"),
        (lambda root: write_mask(root / "masks/0.png", 0, 1, mode="RGB"), r"masks/0\.png: an image of mode RGB"),
        (lambda root: write_mask(root / "masks/0.png", 0, 1, mode="I;16"), r"masks/0\.png: a 16-bit mask"),
        (lambda root: (root / "masks/0.png").write_bytes(b"PNG"), r"masks/0\.png: cannot be read"),
        (lambda root: (root / "masks/0.png").unlink(), r"masks/0\.png: no such mask"),
        (lambda root: (root / "images/0.jpg").unlink(), r"images/0\.jpg: no such file"),
        (lambda root: write_photo(root / "images/0.jpg", (30, 60)), r"masks/0\.png: 60x40 pixels, .* has 60x30"),
    ],
)
def test_a_pair_that_cannot_be_used(tmp_path: Path, spoil: Callable[[Path], object], why: str) -> None:
    spoil(write_folder(tmp_path, (0, 1), (0, 2)))
    benchmark = open_benchmark("folder", tmp_path)
    assert len(benchmark.pairs) == 2
    with pytest.raises(ValueError, match=why):
        benchmark.load(benchmark.pairs[0])
    benchmark.load(benchmark.pairs[1])


@pytest.mark.parametrize("text", ["{", '{"classes": {"1": "cat"}}', '{"classes": ["cat"]}', '{"classes": {}}'])
def test_classes_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    (write_folder(tmp_path, (0,)) / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json: (expected|numbers its classes)"):
        open_benchmark("folder", tmp_path)


def test_files_of_annotations_that_cannot_be_used(tmp_path: Path) -> None:
    write_coco_instances(tmp_path)
    file = tmp_path / "annotations/instances_val2017.json"
    whole = file.read_text()
    file.write_text(whole.replace('"category_id": 17', '"category_id": 12'))
    benchmark = open_benchmark("coco-object", tmp_path)
    with pytest.raises(MaskError, match=r"an annotation of 000000000001\.jpg cannot be drawn"):
        benchmark.load(benchmark.pairs[0])
    file.write_text(whole.replace('"000000000001.jpg"', '"../000000000001.jpg"'))
    with pytest.raises(ValueError, match="names of photos alone"):
        open_benchmark("coco-object", tmp_path)
    file.write_text("[]")
    with pytest.raises(ValueError, match="expected COCO's instances"):
        open_benchmark("coco-object", tmp_path)
    context = tmp_path / "context"
    write_context(context, "mat")
    (context / "trainval/2008_000002.mat").write_bytes(b"MATLAB")
    benchmark = open_benchmark("context60", context)
    with pytest.raises(MaskError, match="no LabelMap can be read"):
        benchmark.load(benchmark.pairs[0])
    (context / "trainval/labels.txt").write_text("1: accordion\n")
    with pytest.raises(ValueError, match="the download's own lines"):
        open_benchmark("context60", context)


def test_names_are_what_a_model_can_be_asked_for() -> None:
    assert [len(names) for names in (COCO_THINGS, COCO_STUFF, ADE150, CITYSCAPES19)] == [80, 91, 150, 19]
    for names in (COCO_THINGS + COCO_STUFF, ADE150, CITYSCAPES19):
        assert check_labels(names) == names


@pytest.mark.parametrize("name", ["voc2012", "coco-object"])
def test_sclips_words(tmp_path: Path, name: str) -> None:
    {"voc2012": write_voc, "coco-object": write_coco_maps}[name](tmp_path)
    benchmark = open_benchmark(name, tmp_path)
    own, words = words_of(benchmark), words_of(benchmark, "sclip")
    assert len(words) == len(own) == len(benchmark.names) and own[0] == () and len(words[0]) >= 25
    assert "person in shirt" in words[benchmark.names.index("person")]
    check_labels([word for own in words for word in own])
    with pytest.raises(ValueError, match=r"'folder'.* the set's own names"):
        words_of(open_benchmark("folder", write_folder(tmp_path / "own", (0,))), "sclip")


def test_a_benchmark_of_someone_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function and one line in the table: the command and the Python API know it."""

    def open_mine(root: Path, split: str) -> Benchmark:
        pairs = match_stems(root / "images", root / "masks")
        return Benchmark("mine", split, ("sky", "sea"), pairs, png_reader(class_values(2)))

    monkeypatch.setitem(DATASETS, "mine", open_mine)
    root, result = write_folder(tmp_path, (0, 1), (1,)), tmp_path / "result.json"
    assert open_benchmark("mine", root).names == ("sky", "sea")
    assert main(["evaluate", "mine", "--root", str(root), "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    assert (found["set"], found["photos"], list(found["per_class"])) == ("mine", 2, ["sky", "sea"])


def test_an_unknown_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "voc2013", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "'voc2013'" in error and all(name in error for name in DATASETS)
