"""A Segmentation is drawn, saved and listed as documented."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import supervision
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from segclip.segment.result import Segmentation
from segclip.visualize import LISTED, MISSING, OKABE_ITO, palette


def make(names: tuple[str, ...], labels: np.ndarray, scores: np.ndarray | None = None) -> Segmentation:
    photo = np.full((*labels.shape, 3), 90, np.uint8)
    scores = np.full(labels.shape, 0.5, np.float32) if scores is None else scores
    presence = np.linspace(0.25, 0.75, len(names), dtype=np.float32)
    return Segmentation(labels.astype(np.int32), scores, names, photo, "open", "auto", presence)


def quarters() -> Segmentation:
    """Label 2 upper left (score 0.75), background elsewhere (0.25)."""
    labels, scores = np.zeros((80, 120)), np.full((80, 120), 0.25, np.float32)
    labels[:40, :60], scores[:40, :60] = 2, 0.75
    return make(("dog", "cat"), labels, scores)


def test_what_was_found() -> None:
    background, cat = quarters().found()
    assert (cat.label, cat.index, cat.share, cat.score, cat.box) == ("cat", 2, 0.25, 0.75, (0, 0, 60, 40))
    assert (background.label, background.index, background.share, background.score) == ("background", 0, 0.75, 0.25)


def test_what_was_not_found() -> None:
    assert quarters().not_found() == ["dog"]
    assert make(("dog", "cat", "cow", "猫"), np.full((4, 4), 3)).not_found() == ["dog", "cat", "猫"]
    assert make(("dog",), np.zeros((4, 4))).not_found() == ["dog"]
    assert not make(("dog", "cat"), np.resize([1, 2], (4, 4))).not_found()


def test_saved_files(tmp_path: Path) -> None:
    result = quarters()
    overlay, mask, record = result.save(tmp_path / "new" / "folder", "photo.1")
    assert [p.name for p in (overlay, mask, record)] == ["photo.1.overlay.png", "photo.1.mask.png", "photo.1.json"]
    assert sorted(p.name for p in overlay.parent.iterdir()) == sorted(p.name for p in (overlay, mask, record))
    with Image.open(mask) as image:
        assert image.mode == "P" and (np.asarray(image) == result.labels).all()
        colours = image.getpalette() or []
    assert colours[:3] == [0, 0, 0] and tuple(colours[3:6]) == OKABE_ITO[0]
    with Image.open(overlay) as image:
        assert image.width >= 120 and image.height > 80
    stored = json.loads(record.read_text(encoding="utf-8"))
    assert (stored["width"], stored["height"], stored["protocol"], stored["background"]) == (120, 80, "open", "auto")
    assert stored["labels"] == ["dog", "cat"] and stored["not_found"] == ["dog"]
    assert stored["presence"] == {"dog": 0.25, "cat": 0.75}
    assert stored["found"][1] == {"label": "cat", "index": 2, "share": 0.25, "score": 0.75, "box": [0, 0, 60, 40]}


def test_coco_reads_what_was_found(tmp_path: Path) -> None:
    result = make(("dog", "cat", "猫"), np.random.default_rng(0).integers(0, 3, (31, 47)))
    (tmp_path / "coco.json").write_text(json.dumps(result.to_coco("a.jpg")), encoding="utf-8")
    read = COCO(tmp_path / "coco.json")
    assert [(c["id"], c["name"]) for c in read.loadCats(read.getCatIds())] == [(1, "dog"), (2, "cat"), (3, "猫")]
    assert read.loadImgs([1])[0] == {"id": 1, "file_name": "a.jpg", "width": 47, "height": 31}
    labels = np.zeros_like(result.labels)
    for one in map(dict, read.loadAnns(read.getAnnIds(imgIds=[1]))):
        mask = read.annToMask(one) > 0  # type: ignore[arg-type]
        assert one["area"] == mask.sum() and one["score"] == 0.5 and one["bbox"] == [0, 0, 47, 31]
        labels[mask] = one["category_id"]
    assert (labels == result.labels).all() and len(read.anns) == 2
    box = quarters().to_coco()["annotations"][0]["bbox"]
    assert box == [0, 0, 60, 40] and not make(("dog",), np.zeros((4, 4))).to_coco()["annotations"]


@pytest.mark.parametrize(
    ("module", "use", "remedy"),
    [
        ("pycocotools", Segmentation.to_coco, 'pip install "segclip[annotate]"'),
        ("supervision", Segmentation.to_supervision, 'pip install "supervision>=0.31"'),
    ],
)
def test_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, module: str, use: Callable[[Segmentation], object], remedy: str
) -> None:
    for name in (module, f"{module}.mask"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"{module} is not installed; {re.escape(remedy)}"):
        use(quarters())


def test_supervision_takes_what_was_found() -> None:
    result = make(("dog", "cat"), np.random.default_rng(0).integers(0, 3, (31, 47)))
    found = [f for f in result.found() if f.index]
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 2
    assert np.asarray(detections.class_id).tolist() == [f.index for f in found]
    assert list(detections.data["class_name"]) == [f.label for f in found]
    masks = np.asarray(detections.mask)
    assert all((mask == (result.labels == f.index)).all() for mask, f in zip(masks, found, strict=True))
    assert detections.area.tolist() == [(result.labels == f.index).sum() for f in found]
    assert len(make(("dog",), np.zeros((4, 4))).to_supervision()) == 0


def test_mask_crop_and_cutout_of_a_label() -> None:
    result = quarters()
    result.photo[:40, :60] = 7, 8, 9
    assert (result.mask("cat") == (result.labels == 2)).all() and result.mask("cat").sum() == 2400
    assert not result.mask("dog").any() and result.mask("background").sum() == 7200
    crop, cutout = result.crop("cat"), result.cutout("background")
    assert (crop.mode, crop.size, crop.getpixel((59, 39))) == ("RGB", (60, 40), (7, 8, 9))
    assert (cutout.mode, cutout.size) == ("RGBA", (120, 80))
    assert cutout.getpixel((0, 0)) == (7, 8, 9, 0) and cutout.getpixel((60, 0)) == (90, 90, 90, 255)


@pytest.mark.parametrize("use", [Segmentation.mask, Segmentation.crop, Segmentation.cutout])
def test_a_label_that_was_not_given(use: Callable[[Segmentation, str], object]) -> None:
    with pytest.raises(ValueError, match=r"'cow'.*'background', 'dog', 'cat'"):
        use(quarters(), "cow")


@pytest.mark.parametrize("use", [Segmentation.crop, Segmentation.cutout])
def test_a_label_that_was_not_found(use: Callable[[Segmentation, str], object]) -> None:
    with pytest.raises(ValueError, match=r"'dog' was not found.*'background', 'cat'"):
        use(quarters(), "dog")


def test_how_a_result_shows_itself() -> None:
    assert repr(quarters()) == "<Segmentation 120x80: background 75.0%, cat 25.0%; not found: dog>"
    absent = make(tuple(f"thing {i}" for i in range(20)), np.full((4, 4), 20))
    assert repr(absent).startswith("<Segmentation 4x4: thing 19 100.0%; not found: thing 0, thing 1, ")
    assert repr(absent).endswith(", thing 5, and 13 more>") and len(repr(absent)) <= 120
    many = make(tuple(f"thing {i}" for i in range(20)), np.resize(np.arange(21), (21, 21)))
    assert repr(many).endswith(" more>") and "; not found" not in repr(many) and 90 < len(repr(many)) <= 120
    both = make(tuple(f"thing {i}" for i in range(20)), np.resize(np.arange(10), (21, 21)))
    assert "; not found: thing 9, " in repr(both) and repr(both).count(" more") == 2 and len(repr(both)) <= 150
    assert len(repr(make(("very " * 200, "so " * 200), np.ones((4, 4))))) <= 200
    with Image.open(io.BytesIO(quarters()._repr_png_() or b"")) as image:
        assert (np.asarray(image) == np.asarray(quarters().overlay())).all()


@pytest.mark.parametrize(("count", "mode"), [(255, "P"), (256, "I;16"), (5000, "I;16")])
def test_mask_holds_every_index(tmp_path: Path, count: int, mode: str) -> None:
    labels = np.resize(np.arange(count + 1), (80, 80))
    result = make(tuple(f"thing {i}" for i in range(count)), labels)
    _, mask, _ = result.save(tmp_path, "many")
    with Image.open(mask) as image:
        assert image.mode == mode and (np.asarray(image) == result.labels).all()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarters().save(tmp_path, "photo")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(self: Segmentation) -> Image.Image:
        raise OSError("disk full")

    monkeypatch.setattr(Segmentation, "index_image", fail)
    with pytest.raises(OSError, match="disk full"):
        quarters().save(tmp_path, "photo")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    result = quarters()
    result.save(tmp_path, "photo.1")
    loaded = Segmentation.load(tmp_path, "photo.1")
    np.testing.assert_array_equal(loaded.labels, result.labels)
    np.testing.assert_array_equal(loaded.scores, result.scores)
    assert (loaded.names, loaded.protocol, loaded.background) == (result.names, result.protocol, result.background)
    assert loaded.found() == result.found() and loaded.record() == result.record() and repr(loaded) == repr(result)
    assert loaded.presence.tolist() == result.presence.tolist() and loaded.labels.dtype == result.labels.dtype
    assert loaded.to_coco() == result.to_coco() and (loaded.mask("cat") == result.mask("cat")).all()
    for use in (Segmentation.overlay, lambda one: one.crop("cat"), lambda one: one.cutout("cat")):
        with pytest.raises(ValueError, match=r"not saved .*; give it: Segmentation\.load\(folder, stem, photo\)"):
            use(loaded)
    assert loaded._repr_png_() is None
    with pytest.raises(ValueError, match="segment the photo again"):
        loaded.probability("cat")
    whole = Segmentation.load(tmp_path, "photo.1", result.photo)
    assert (np.asarray(whole.overlay()) == np.asarray(result.overlay())).all()


@pytest.mark.parametrize("count", [255, 300])
def test_many_labels_come_back(tmp_path: Path, count: int) -> None:
    labels = np.resize(np.arange(count + 1), (80, 80))
    result = make(tuple(f"thing {i}" for i in range(count)), labels)
    result.save(tmp_path, "many")
    loaded = Segmentation.load(tmp_path, "many")
    assert (loaded.labels == labels).all() and loaded.names == result.names
    np.testing.assert_allclose(loaded.presence, result.presence, atol=1e-4)


def change(**fields: object) -> Callable[[Path], object]:
    """Edits fields of the record; None removes one."""

    def edit(folder: Path) -> None:
        record = json.loads((folder / "a.json").read_text()) | fields
        (folder / "a.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))

    return edit


def paint(folder: Path) -> None:
    """A corner of the mask, by hand."""
    with Image.open(folder / "a.mask.png") as mask:
        mask.load()
    mask.putpixel((119, 79), 1)
    mask.save(folder / "a.mask.png")


EDITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no record": (lambda folder: (folder / "a.json").unlink(), r"a\.json: cannot be read \(No such file"),
    "no mask": (lambda folder: (folder / "a.mask.png").unlink(), r"a\.mask\.png: no such file, only half of"),
    "half a record": (lambda folder: (folder / "a.json").write_text('{"width": 3'), "is no whole JSON"),
    "half a mask": (
        lambda folder: (folder / "a.mask.png").write_bytes((folder / "a.mask.png").read_bytes()[:-60]),
        r"a\.mask\.png: cannot be read",
    ),
    "a list": (lambda folder: (folder / "a.json").write_text("[]"), "without 'width'"),
    "no labels": (change(labels=None), "without 'labels'"),
    "another size": (change(width=7), "120x80, but a.json says 7x80"),
    "fewer labels": (change(labels=["dog"], found=[]), "has label 2, but a.json names 1"),
    "odd labels": (change(labels=["dog", 3]), "a label without a presence"),
    "odd presence": (change(presence={"dog": 0.2, "cat": 7}), "a label without a presence in 0..1"),
    "odd background": (change(background="grey"), "background 'grey'; give auto"),
    "odd findings": (change(found=[{"index": 9}]), "which is not so written"),
    "renamed": (change(labels=["dog", "cow"], presence={"dog": 0.2, "cow": 0.3}), "one of both was changed"),
    "painted": (paint, "one of both was changed"),
    "a photo in its place": (
        lambda folder: Image.new("RGB", (120, 80)).save(folder / "a.mask.png"),
        "mode RGB, whose pixels are no indices",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_half_or_edited_files_are_refused(tmp_path: Path, name: str) -> None:
    edit, why = EDITS[name]
    quarters().save(tmp_path, "a")
    edit(tmp_path)
    with pytest.raises(ValueError, match=why) as raised:
        Segmentation.load(tmp_path, "a")
    assert "\n" not in str(raised.value)


def test_another_photo_is_refused(tmp_path: Path) -> None:
    quarters().save(tmp_path, "a")
    with pytest.raises(ValueError, match=r"photo of 80x120; .*a\.json is of 120x80: give that photo"):
        Segmentation.load(tmp_path, "a", np.zeros((120, 80, 3), np.uint8))
    with pytest.raises(ValueError, match="without a folder"):
        Segmentation.load(tmp_path, "../a")


@pytest.mark.parametrize("stem", ["", "../photo", "a/b", ".", ".."])
def test_a_stem_is_a_file_name(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ValueError, match="without a folder"):
        quarters().save(tmp_path, stem)


def test_colours_are_distinct() -> None:
    assert len(np.unique(palette(256), axis=0)) == 256
    assert (palette(300)[:256] == palette(256)).all()


def test_overlay_tints_labels_only_and_names_them() -> None:
    overlay = np.asarray(quarters().overlay())
    assert (overlay[60:80, 80:120] == 90).all(), "the background keeps the photo"
    assert (overlay[2, 2] != 90).any()
    plain = np.asarray(make(("dog", "-"), quarters().labels).overlay())
    assert (overlay[:40, :60] != plain[:40, :60]).any(), "the name is written in its region"


def test_the_legend_says_what_was_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a swatch, after what was found; of many, it names the first."""
    written: list[tuple[str, float]] = []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, *rest, **options: (
            written.append((text, xy[1])) or write(self, xy, text, *rest, **options)
        ),
    )
    quarters().overlay()
    assert [text for text, _ in written if text != "cat"] == ["background  75.0%", "cat  25.0%", "dog: not found"]
    written.clear()
    sheet = make(tuple(f"thing {i}" for i in range(20)), np.full((400, 100), 20)).overlay()
    legend = [text for text, _ in written[-MISSING - 2 :]]
    assert legend[:2] == ["thing 19  100.0%", "thing 0: not found"]
    assert legend[-2:] == [f"thing {MISSING - 1}: not found", f"{19 - MISSING} more not found"]
    rows = np.asarray(sheet)[400:]
    coloured = (rows.max(axis=2) - rows.min(axis=2) > 60).any(axis=1)
    assert coloured.any() and not coloured[len(coloured) // 4 :].any(), "one swatch, that of what was found"


def test_overlay_of_scripts_without_a_font_and_of_many_labels() -> None:
    names = ("猫", "\U0001f408", "قطة", "a\nb", "x" * 300, *(f"thing {i}" for i in range(200)))
    labels = np.resize(np.arange(len(names) + 1), (60, 60))
    overlay = make(names, labels).overlay()
    assert overlay.height < 60 + (LISTED + 3) * 30
