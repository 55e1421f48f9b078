"""Each annotation file, read back by its own reader or by its documented rule, gives the masks it was made from."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import supervision
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.ndimage import gaussian_filter

from segclip.annotate.annotator import Annotated, Drawing, annotate
from segclip.annotate.formats import write_all
from segclip.annotate.formats.review import write_review
from segclip.annotate.formats.yolo import write_yaml
from segclip.annotate.segments import Collection, PhotoSegments
from segclip.segment.result import Segmentation

NAMES = ("cat", "potted plant", 'a "<&>" 猫', "never there")
SIZES = {"a b.jpg": (60, 80), "b.é.png": (75, 50), "c&d.png": (40, 40)}


def segmentation(size: tuple[int, int], seed: int) -> Segmentation:
    """Blobs of three labels and the background, with holes and specks."""
    generator = np.random.default_rng(seed)
    noise = [gaussian_filter(generator.standard_normal(size), 3) for _ in NAMES]
    labels = np.argmax(noise, axis=0).astype(np.int32)
    scores = generator.random(size, np.float32)
    photo = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    return Segmentation(labels, scores, NAMES, photo, "open", "auto", np.ones(len(NAMES), np.float32))


def write(out: Path, drawing: Drawing) -> dict[str, Annotated]:
    """Photos in out/photos, annotations in out; the last photo has nothing but background."""
    found = {}
    for seed, (name, size) in enumerate(SIZES.items()):
        result = segmentation(size, seed)
        if name == "c&d.png":
            result.labels[:] = 0
        found[name] = annotate(result, name, Path(name).stem, drawing)
        for file, data in {**found[name].files, f"photos/{name}": b"", f"yolo/images/{name}": b""}.items():
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_bytes(data)
        for folder in ("photos", "yolo/images"):
            Image.fromarray(result.photo).save(out / folder / name)
    write_all(
        out, Collection("photos", NAMES, {"description": "test"}, lambda: (one.segments for one in found.values()))
    )
    return found


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Polygons along the pixels' edges."""
    out = tmp_path_factory.mktemp("exact")
    write(out, Drawing(clean=0.004, tolerance=0.0))
    return out


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simple")
    write(out, Drawing())
    return out


def masks(out: Path) -> dict[str, np.ndarray]:
    """The label map of each photo, by the photo's stem."""
    return {path.stem: np.asarray(Image.open(path)).astype(int) for path in sorted((out / "masks").iterdir())}


def from_coco(file: Path) -> dict[str, np.ndarray]:
    read, found = COCO(file), {}
    for image in read.loadImgs(read.getImgIds()):
        labels = np.zeros((image["height"], image["width"]), int)
        for one in read.loadAnns(read.getAnnIds(imgIds=[image["id"]])):
            labels[read.annToMask(one) > 0] = one["category_id"]
        found[Path(image["file_name"]).stem] = labels
    return found


def fill(polygons: list[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    shapes = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *size)  # type: ignore[arg-type]
    return np.array(coco_mask.decode(coco_mask.merge(shapes))) > 0


def from_yolo(out: Path) -> dict[str, np.ndarray]:
    """A line a polygon: class from 0, then x and y as shares of the photo's sides."""
    found = {}
    for stem, mask in masks(out).items():
        labels = np.zeros_like(mask)
        for line in (out / f"yolo/labels/{stem}.txt").read_text().splitlines():
            index, *numbers = line.split()
            corners = np.reshape(list(map(float, numbers)), (-1, 2))
            assert corners.min() >= 0 and corners.max() <= 1
            labels[fill([corners * mask.shape[::-1]], mask.shape)] = int(index) + 1
        found[stem] = labels
    return found


def from_label_studio(file: Path) -> dict[str, np.ndarray]:
    """https://labelstud.io/guide/predictions: points in percent of the photo's sides."""
    found = {}
    for task in json.loads(file.read_text(encoding="utf-8")):
        (prediction,) = task["predictions"]
        address = urlparse(task["data"]["image"])
        assert address.path == "/data/local-files/"
        photo = Path(parse_qs(address.query)["d"][0])
        labels = np.zeros(SIZES[photo.name], int)
        assert photo.parent == Path("photos")
        for one in prediction["result"]:
            size = one["original_height"], one["original_width"]
            assert (one["from_name"], one["to_name"], one["type"]) == ("label", "image", "polygonlabels")
            assert size == labels.shape and prediction["score"] <= one["score"]
            corners = np.array(one["value"]["points"]) / 100 * size[::-1]
            labels[fill([corners], size)] = NAMES.index(one["value"]["polygonlabels"][0]) + 1
        found[photo.stem] = labels
    return found


def from_cvat(file: Path) -> dict[str, np.ndarray]:
    """https://docs.cvat.ai/docs/manual/advanced/xml_format: runs within the box, the first of what is not in it."""
    found = {}
    for image in ElementTree.parse(file).getroot().iter("image"):
        labels = np.zeros((int(image.attrib["height"]), int(image.attrib["width"])), int)
        for mask in image.iter("mask"):
            left, top, width, height = (int(mask.attrib[key]) for key in ("left", "top", "width", "height"))
            runs = list(map(int, mask.attrib["rle"].split(",")))
            inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any(), (
                "the box is tight"
            )
            labels[top : top + height, left : left + width][inside] = NAMES.index(mask.attrib["label"]) + 1
        found[Path(image.attrib["name"]).stem] = labels
    return found


def from_panoptic(out: Path) -> dict[str, np.ndarray]:
    """https://cocodataset.org/#format-data: id = R + 256 G + 65536 B."""
    read = json.loads((out / "panoptic.json").read_text(encoding="utf-8"))
    names, found = {image["id"]: image["file_name"] for image in read["images"]}, {}
    for one in read["annotations"]:
        pixels = np.asarray(Image.open(out / "panoptic" / one["file_name"])).astype(int) @ [1, 256, 65536]
        kinds = {segment["id"]: segment["category_id"] for segment in one["segments_info"]}
        assert set(np.unique(pixels)) - {0} == set(kinds)
        for segment in one["segments_info"]:
            assert segment["area"] == (pixels == segment["id"]).sum()
        assert Path(names[one["image_id"]]).stem == Path(one["file_name"]).stem
        found[Path(one["file_name"]).stem] = np.vectorize(lambda i, kinds=kinds: kinds.get(i, 0))(pixels)
    return found


def test_what_every_reader_gets_is_the_mask_to_the_pixel(exact: Path) -> None:
    truth = masks(exact)
    assert list(truth) == ["a b", "b.é", "c&d"] and len(np.unique(truth["a b"])) == 4 and not truth["c&d"].any()
    readings = {
        "COCO run lengths": from_coco(exact / "coco.json"),
        "COCO polygons": from_coco(exact / "coco-polygons.json"),
        "panoptic": from_panoptic(exact),
        "CVAT": from_cvat(exact / "cvat.xml"),
        "Label Studio": from_label_studio(exact / "label-studio.json"),
        "YOLO": from_yolo(exact),
    }
    for what, found in readings.items():
        assert list(found) == list(truth), what
        for stem, labels in found.items():
            np.testing.assert_array_equal(labels, truth[stem], err_msg=f"{what}, {stem}")


def test_simple_polygons_are_near_the_mask(simple: Path, exact: Path) -> None:
    truth = masks(simple)
    for found in (from_coco(simple / "coco-polygons.json"), from_label_studio(simple / "label-studio.json")):
        assert min((labels == truth[stem]).mean() for stem, labels in found.items()) > 0.93
    sizes = [(out / "coco-polygons.json").stat().st_size for out in (simple, exact)]
    assert 2 * sizes[0] < sizes[1], "they have far fewer corners"


def test_supervision_reads_coco_and_yolo(exact: Path) -> None:
    truth = masks(exact)
    coco = supervision.DetectionDataset.from_coco(
        str(exact / "photos"), str(exact / "coco.json"), force_masks=True, show_progress=False
    )
    yolo = supervision.DetectionDataset.from_yolo(
        str(exact / "yolo/images"), str(exact / "yolo/labels"), str(exact / "yolo/data.yaml"), force_masks=True
    )
    assert coco.classes == yolo.classes == list(NAMES)
    for data, least in ((coco, 1.0), (yolo, 0.8)):  # its filling of polygons takes the pixels on the edge as well
        assert len(data) == 3
        for path, _, found in data:
            labels = np.zeros_like(truth[Path(path).stem])
            for mask, kind in zip(np.asarray(found.mask if len(found) else []), found.class_id, strict=True):  # type: ignore[arg-type]
                labels[mask] = kind + 1
            assert (labels == truth[Path(path).stem]).mean() >= least


def test_review_lists_the_most_doubtful_first(exact: Path) -> None:
    with (exact / "review.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    doubts = [float(row["doubt"]) for row in rows]
    assert doubts == sorted(doubts, reverse=True) and len(rows) == 7
    assert [row["photo"] for row in rows if row["label"] == "background"] == ["c&d.png"]
    for row in rows:
        assert float(row["doubt"]) == pytest.approx(1 - float(row["score"]), abs=1e-6)
        mask = masks(exact)[Path(row["photo"]).stem] == ("background", *NAMES).index(row["label"])
        assert float(row["share"]) == pytest.approx(mask.mean(), abs=1e-6)
        where = np.argwhere(mask)
        box = [int(row[side]) for side in ("left", "top", "right", "bottom")]
        assert box == [*where.min(axis=0)[::-1], *(where.max(axis=0)[::-1] + 1)]


def collection(names: tuple[str, ...], photo: str = "a.png") -> Collection:
    """One photo of 2x2 pixels, one of each label, from the last on."""
    labels = np.arange(len(names) - 3, len(names) + 1, dtype=np.int32).reshape(2, 2).clip(0)
    ones = np.ones((2, 2), np.float32)
    photo_pixels, presence = np.zeros((2, 2, 3), np.uint8), np.ones(len(names), np.float32)
    result = Segmentation(labels, ones, names, photo_pixels, "open", None, presence)
    segments = annotate(result, photo, Path(photo).stem, Drawing(clean=0.0)).segments
    return Collection("photos", names, {}, lambda: iter([segments]))


def test_no_cell_of_the_review_is_a_formula(tmp_path: Path) -> None:
    names = ("=HYPERLINK(0)", "+1", "-1", "@sum", "＝1", "a=b")
    file = tmp_path / "review.csv"
    for some, photo in ((names[:3], "=cmd.png"), (names[3:], "a.png")):
        with file.open("w", encoding="utf-8", newline="") as opened:
            write_review(opened, collection(some, photo))
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        shown = {name if name == "a=b" else f"'{name}" for name in some}
        assert {row["label"] for row in rows} - {"background"} == shown
        assert {row["photo"] for row in rows} == {f"'{photo}" if photo.startswith("=") else photo}


def test_yolos_yaml_is_read_with_every_label(tmp_path: Path) -> None:
    """All letters there are, many at once, and what YAML takes for something else than a text."""
    letters = [chr(i) for i in (*range(0xD800), *range(0xE000, 0x11000), 0x1F408, 0x10FFFF)]
    names = ["".join(letters[i : i + 500]) for i in range(0, len(letters), 500)]
    names += ["yes", "null", "1", "- a", "a: b", "{x}", "# no", "'", '"', "\\", "%", "!!python/object:x", " a "]
    file = tmp_path / "data.yaml"
    with file.open("w", encoding="utf-8", newline="\n") as opened:
        write_yaml(opened, Collection("photos", tuple(names), {}, lambda: iter([])))
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert read == {"train": "images", "val": "images", "names": dict(enumerate(names))}


def test_labels_for_cvat_and_label_studio(exact: Path) -> None:
    labels = json.loads((exact / "cvat-labels.json").read_text(encoding="utf-8"))
    config = ElementTree.parse(exact / "label-studio.xml").getroot()
    colours = [label["color"] for label in labels]
    assert [label["name"] for label in labels] == list(NAMES) and len(set(colours)) == len(NAMES)
    shown = list(config.iter("Label"))
    assert [label.attrib["value"] for label in shown] == list(NAMES)
    assert [label.attrib["background"] for label in shown] == colours


def test_more_than_255_labels(tmp_path: Path) -> None:
    names = tuple(f"thing {i}" for i in range(70_000))
    labels = np.array([[0, 300], [255, 69_999]], np.int32)
    photo = np.zeros((2, 2, 3), np.uint8)
    presence = np.ones(len(names), np.float32)
    result = Segmentation(labels, np.ones((2, 2), np.float32), names, photo, "open", None, presence)
    with pytest.raises(ValueError, match="70000 labels; a 16-bit mask holds 65535"):
        annotate(result, "a.png", "a", Drawing(clean=0.0))
    few = Segmentation(labels % 1000, result.scores, names[:1000], photo, "open", None, presence[:1000])
    for name, data in annotate(few, "a.png", "a", Drawing(clean=0.0)).files.items():
        (tmp_path / Path(name).parent.name).write_bytes(data)
    assert (np.asarray(Image.open(tmp_path / "masks")) == few.labels).all()
    assert (np.asarray(Image.open(tmp_path / "panoptic")).astype(int) @ [1, 256, 65536] == few.labels).all()


def test_records_come_back_whole() -> None:
    segments = annotate(segmentation((30, 40), 5), "a.png", "a", Drawing()).segments
    assert PhotoSegments.from_record(json.loads(json.dumps(segments.record()))) == segments


@pytest.mark.parametrize(
    ("clean", "tolerance", "why"), [(-1.0, 1.0, "clean -1"), (0.5, 1.0, "clean 0.5"), (0.0, -2.0, "pixels")]
)
def test_settings_that_cannot_be_used(clean: float, tolerance: float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Drawing(clean, tolerance)
