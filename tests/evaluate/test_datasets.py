"""The benchmarks' downloads, each in its own layout and encoding; what is wrong in them is named."""

import json
import os
import shutil
import struct
import zlib
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
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segclip.cli import main
from segclip.evaluate.datasets import DATASETS, open_benchmark
from segclip.evaluate.datasets.ade20k import ADE150
from segclip.evaluate.datasets.benchmark import (
    PNG,
    Benchmark,
    MaskError,
    class_values,
    match_stems,
    png_reader,
    read_indices,
    translate,
)
from segclip.evaluate.datasets.cityscapes import CITYSCAPES19
from segclip.evaluate.datasets.coco_object import draw_counts, read_counts
from segclip.evaluate.datasets.coco_stuff import COCO_STUFF, COCO_THINGS
from segclip.evaluate.evaluator import words_of
from segclip.segment.coco import encode_rle
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
        (lambda root: Image.new("1", (60, 40)).save(root / "masks/0.png"), r"grey mask of 1 bit, whose .* 1 or 255"),
        (lambda root: write_grey(root / "masks/0.png", 4), r"masks/0\.png: a grey mask of 4 bits, .* 15 or 255"),
        (lambda root: Image.new("L", (60, 40)).save(root / "masks/0.png", "EPS"), r"masks/0\.png: .* \(not a PNG\)"),
        (lambda root: Image.new("L", (60, 40)).save(root / "masks/0.png", "JPEG"), r"masks/0\.png: .* \(not a PNG\)"),
        (lambda root: write_grey(root / "masks/0.png", 8, side=20000), r"20000x20000 pixels; at most 200 megapixels"),
        (lambda root: make_pipe(root / "masks/0.png"), r"masks/0\.png: cannot be read \(not a file\)"),
        (lambda root: cut(root / "masks/0.png"), r"masks/0\.png: cannot be read"),
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


def test_a_mask_is_read_whatever_else_its_file_holds(tmp_path: Path) -> None:
    """Texts past Pillow's limit, a broken profile; a palette of 16 colours, whose indices have 4 bits."""
    root = write_folder(tmp_path, (0, 1))
    file, mask = root / "masks/0.png", Image.fromarray(np.eye(40, 60, dtype=np.uint8))
    texts = PngInfo()
    texts.add_text("comment", "a" * 2_000_000, zip=True)
    mask.save(file, pnginfo=texts, icc_profile=b"broken")
    assert (read_indices(file) == np.eye(40, 60)).all()
    mask.putpalette(bytes(48))
    mask.save(file, bits=4)
    assert (read_indices(file) == np.eye(40, 60)).all()


@pytest.mark.parametrize("value", [-1, 2, 65535, 2**16, 2**31, -(2**40)])
def test_a_value_that_is_no_class_is_named_whatever_its_size(value: int) -> None:
    with pytest.raises(MaskError, match=rf"mask: has the values {value}, which are no class; expected 0 to 1, 255"):
        translate(np.array([[0, 255], [1, value]]), class_values(2), "mask")
    with pytest.raises(MaskError, match="mask: 2 axes of float64; expected whole numbers"):
        translate(np.zeros((2, 2)), class_values(2), "mask")


def test_upper_case_suffixes_and_two_files_of_one_name(tmp_path: Path) -> None:
    root = write_folder(tmp_path, (0, 1), (1, 0))
    (root / "masks/0.png").rename(root / "masks/0.PNG")
    (root / "images/._0.jpg").write_bytes(b"of macOS")
    benchmark = open_benchmark("folder", root)
    assert [benchmark.load(pair)[1][0, 0] for pair in benchmark.pairs] == [0, 1]
    for folder, other in (("masks", "0.png"), ("images", "0.png"), ("images", "0.JPG")):
        write_photo(root / folder / other)
        with pytest.raises(ValueError, match=rf"{folder}/0\.\w+ and .*{folder}/0\.\w+: two files of one name"):
            open_benchmark("folder", root)
        (root / folder / other).unlink()
    write_voc(tmp_path / "voc")
    write_list(tmp_path / "voc/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "2007_000033", "2007_000033")
    with pytest.raises(ValueError, match="two photos of one name, '2007_000033', in a set"):
        open_benchmark("voc2012", tmp_path / "voc")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"classes": {"1": "cat"}}',
        '{"classes": ["cat"]}',
        '{"classes": {}}',
        '{"classes": {"0": 1}}',
        '{"classes": {"0": "a", "1": "a"}}',
    ],
)
def test_classes_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    (write_folder(tmp_path, (0,)) / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json: (expected|numbers its classes|class \d is called)"):
        open_benchmark("folder", tmp_path)


@pytest.mark.parametrize("change", [{"segmentation": []}, {"segmentation": [[]]}, {"segmentation": [[1, 1, 9, 9]]}])
def test_an_annotation_without_an_outline_draws_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    mask = draw_with(tmp_path, change)
    assert 16 not in mask and {1, 33} <= set(mask.flat)


@pytest.mark.parametrize("change", [{"area": None}, {"area": float("nan")}, {"iscrowd": None}, {"area": ...}])
def test_an_annotation_with_less_than_it_should_have_is_drawn(tmp_path: Path, change: dict[str, object]) -> None:
    assert (draw_with(tmp_path, change) == draw_with(tmp_path, {})).all()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"category_id": 12}, "not in tuple"),
        ({"segmentation": 5}, "not subscriptable"),
        ({"segmentation": [["a"]]}, "could not convert"),
        ({"segmentation": [[0, 0, 1, 1, 2]]}, "expected polygons"),
        ({"segmentation": [[0, 0, 1, 1, 2, float("inf")]]}, "expected polygons"),
        ({"segmentation": [[0, 0, 1e9, 1, 2, 5e8]]}, "pixels long"),
        ({"segmentation": [[0, 0, 9e5, 9e5] * 100]}, "pixels long"),
        ({"segmentation": {"size": [40, 60], "counts": [0, 3]}}, "run lengths that are not those of 40x60"),
        ({"segmentation": {"size": [40, 60], "counts": [-2400, 4800]}}, "run lengths that are not those of 40x60"),
        ({"segmentation": {"size": [400, 6], "counts": [2400]}}, "run lengths that are not those of 40x60"),
        ({"segmentation": {"size": [40, 60], "counts": "01234~~~"}}, "run lengths"),
        ({"segmentation": {"size": [40, 60], "counts": "P" * 99999}}, "run lengths of no numbers"),
    ],
)
def test_an_annotation_that_cannot_be_drawn_is_named(tmp_path: Path, change: dict[str, object], why: str) -> None:
    with pytest.raises(MaskError, match=rf"annotation 7, an annotation of 000000000001\.jpg, cannot be drawn .*{why}"):
        draw_with(tmp_path, change)


def test_run_lengths_in_letters_are_what_pycocotools_writes(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((40, 60)) > 0.7
    mask[:, 30:] = False
    assert (draw_counts(read_counts(encode_rle(mask)["counts"]), 40, 60) == mask).all()
    found = draw_with(tmp_path, {"segmentation": encode_rle(mask), "category_id": 90, "area": 1})
    assert (found[mask] == 80).all() and not (found == 80)[~mask].any()


def test_sizes_and_photos_that_the_instances_do_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_coco_instances(tmp_path)
    file = tmp_path / "annotations/instances_val2017.json"
    table = json.loads(file.read_text())
    table["annotations"] += [{"id": 98, "image_id": 5}, {"id": 99, "image_id": [1]}, None]
    file.write_text(json.dumps(table))
    benchmark = open_benchmark("coco-object", tmp_path)
    assert "3 annotations of photos that it does not list: left out: ids 98, 99, None" in caplog.text
    for pair in benchmark.pairs:
        benchmark.load(pair)
    for height in (10**9, -1, "many", None):
        table["images"][0]["height"] = height
        file.write_text(json.dumps(table))
        with pytest.raises(MaskError, match=r"000000000001\.jpg has height .*, width 60; expected pixels"):
            open_benchmark("coco-object", tmp_path).read(benchmark.pairs[0])
    table["images"][0]["file_name"] = table["images"][1]["file_name"]
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="several images have one file name or one id"):
        open_benchmark("coco-object", tmp_path)


def draw_with(root: Path, change: dict[str, object]) -> np.ndarray:
    """The mask of the first photo, with the cat's annotation, number 7, changed."""
    shutil.rmtree(root / "annotations", ignore_errors=True)
    write_coco_instances(root)
    file = root / "annotations/instances_val2017.json"
    table = json.loads(file.read_text())
    cat = next(one for one in table["annotations"] if one["category_id"] == 17)
    cat |= {"id": 7, **change}
    table["annotations"] = [{k: v for k, v in one.items() if v is not ...} for one in table["annotations"]]
    file.write_text(json.dumps(table))
    benchmark = open_benchmark("coco-object", root)
    return benchmark.read(benchmark.pairs[0])


def write_grey(path: Path, bits: int, side: int = 40) -> None:
    """A black PNG of so many bits a pixel, of which Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + side * bits // 8) * min(side, 40)))
    path.write_bytes(PNG + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_files_of_annotations_that_cannot_be_used(tmp_path: Path) -> None:
    write_coco_instances(tmp_path)
    file = tmp_path / "annotations/instances_val2017.json"
    whole = file.read_text()
    file.write_text(whole.replace('"category_id": 17', '"category_id": 12'))
    benchmark = open_benchmark("coco-object", tmp_path)
    with pytest.raises(MaskError, match=r"an annotation of 000000000001\.jpg, cannot be drawn"):
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
        assert check_labels(names).names == names


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
