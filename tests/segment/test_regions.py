"""What the centers gathered is what the model says, and the sheet shows it."""

import base64
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import skimage.data
import torch
from helpers.pixels import normalise
from helpers.small_model import SENTENCE, small_model
from PIL import Image, ImageFont

from segclip.checkpoints.native import save_model
from segclip.cli import main
from segclip.model.segclip import SegCLIP
from segclip.segment import sheets
from segclip.segment.regions import DARK, Gathered, arrange, draw_sheet, gather
from segclip.segment.sheets import GAP, TEXT, Picture, Sheet, to_pdf, to_svg

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def model() -> SegCLIP:
    return small_model()


def test_it_is_what_the_model_gathered(model: SegCLIP) -> None:
    gathered = gather(model, PHOTO)
    assert gathered.photo.shape == (64, 96, 3), "the short side at the model's own, no windows"
    output = model.encode_image(normalise(gathered.photo[None]))
    assert gathered.hard.shape == (4, 6) and gathered.soft.shape == (4, 4, 6) and gathered.names == ()
    assert (output.hard[0].argmax(dim=0).numpy() == gathered.hard.ravel()).all()
    np.testing.assert_allclose(gathered.soft.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(gathered.soft.reshape(4, -1), output.soft[0].detach().numpy(), atol=1e-6)


def test_regions_get_the_nearest_label(model: SegCLIP) -> None:
    labels = ("cup", "table", "spoon")
    names = gather(model, PHOTO, labels).names
    assert len(names) == 4 and {name for name, _ in names} <= set(labels)
    assert all(1 / 3 <= chance <= 1 for _, chance in names)
    with torch.inference_mode():
        regions = model.encode_image(normalise(gather(model, PHOTO).photo[None])).regions[0]
        text = model.encode_text(model.tokenize([f"a {label}" for label in labels]))
        nearest = torch.nn.functional.cosine_similarity(regions[:, None], text[None], dim=-1).argmax(dim=-1)
    assert [labels[i] for i in nearest] == [name for name, _ in names]


@pytest.mark.parametrize("size", [(1, 1), (10, 2000), (2000, 10), (64, 64)])
def test_photos_of_any_shape(model: SegCLIP, size: tuple[int, int]) -> None:
    sheet = draw_sheet(gather(model, np.resize(PHOTO, (*size, 3))))
    assert sheet.mode == "RGB" and min(sheet.size) > 16


def test_a_model_of_the_other_towers() -> None:
    assert gather(small_model(SENTENCE), PHOTO, ["cup"]).names[0] == ("cup", 1.0)


def test_the_sheet_is_bright_where_a_center_gathers() -> None:
    photo = np.full((40, 60, 3), 200, np.uint8)
    hard = np.array([[0, 0, 1], [0, 0, 1]])
    soft = np.stack([hard == 0, hard == 1, np.zeros((2, 3), bool)]).astype(np.float32)
    sheet = np.asarray(draw_sheet(Gathered(photo, hard, soft, (("cup", 0.9), ("猫", 0.8), ("sea", 0.5)))))
    below = 2 * TEXT - TEXT // 2

    def picture(row: int, column: int) -> np.ndarray:
        top, left = GAP + row * (40 + 2 * TEXT + GAP) + below, GAP + column * (60 + GAP)
        return sheet[top : top + 40, left : left + 60, 0]

    assert sheet.shape[:2] == (GAP + 2 * (40 + 2 * TEXT + GAP), GAP + 4 * (60 + GAP)), "no panel for the third center"
    assert (picture(0, 0) == 200).all()
    assert (picture(0, 2)[:, :40] == 200).all() and (picture(0, 2)[:, 40:] == round(200 * DARK)).all()
    assert (picture(1, 0)[:, 40:] == 200).all() and (picture(1, 0)[:, :40] == round(200 * DARK)).all()
    assert (picture(0, 3)[:, :20] == 200).all() and (picture(0, 3)[:, -5:] == round(200 * DARK)).all()
    assert len(np.unique(picture(0, 1))) == 2, "a colour for each center that has patches"


def test_a_row_has_the_centers_with_the_most_patches() -> None:
    hard = np.array([[5, 1, 1, 1], [2, 2, 0, 0], [3, 3, 4, 5], [5, 5, 5, 5]])
    soft = np.stack([hard == center for center in range(8)]).astype(np.float32)
    sheet = arrange(Gathered(np.full((80, 80, 3), 200, np.uint8), hard, soft, ()), "row")
    titles = [picture.title for picture in sheet.rows[0]]
    assert len(sheet.rows) == 1 and titles[:2] == ["photo", "6 of 8 centers"]
    assert titles[2:] == ["6, 38%", "2, 19%", "1, 12%", "3, 12%"]
    assert sheet.size == (GAP + 6 * (80 + GAP), GAP + 80 + 2 * TEXT + GAP)


def small_sheet() -> Sheet:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Sheet(
        [[Picture("a (b) & <c>", pixels, (230, 159, 0)), Picture("č", pixels[::-1])], [Picture("last", pixels)]]
    )


def test_a_sheet_as_svg() -> None:
    root = ElementTree.fromstring(to_svg(small_sheet()))
    space = "{http://www.w3.org/2000/svg}"
    assert (root.get("width"), root.get("height")) == tuple(map(str, small_sheet().size))
    assert [(one.text or "")[:5] for one in root.iter(f"{space}text")][::2] == ["a (b)", "last"]
    (swatch,) = root.iter(f"{space}rect")
    assert swatch.get("fill") == "#e69f00"
    images = list(root.iter(f"{space}image"))
    with Image.open(io.BytesIO(base64.b64decode(images[0].get("href", "").split(",")[1]))) as image:
        assert (np.asarray(image) == small_sheet().rows[0][0].pixels).all() and len(images) == 3


def test_a_sheet_as_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table of objects is right, and each stream holds what it says."""
    monkeypatch.setattr(sheets, "readable", lambda name, _, size: (name, ImageFont.load_default(size)))
    data = to_pdf(small_sheet())
    assert data.startswith(b"%PDF-1.4") and data.endswith(b"%%EOF\n")
    start = int(re.findall(rb"startxref\n(\d+)", data)[0])
    table = data[start:].split(b"trailer")[0].splitlines()[3:]
    for number, line in enumerate(table, 1):
        assert data[int(line[:10]) :].startswith(f"{number} 0 obj".encode())
    found = list(re.finditer(rb"/Width (\d+) /Height (\d+).*?/Length (\d+) >>\nstream\n", data))
    images = [zlib.decompress(data[m.end() : m.end() + int(m[3])]) for m in found]
    assert len(found) == 4, "three pictures, and a title in letters that Helvetica lacks"
    assert images[0] == small_sheet().rows[0][0].pixels.tobytes()
    assert all(len(image) == 3 * int(m[1]) * int(m[2]) for image, m in zip(images, found, strict=True))
    page = re.search(rb"<<  /Filter /FlateDecode /Length (\d+) >>\nstream\n", data)
    assert page is not None
    text = zlib.decompress(data[page.end() : page.end() + int(page[1])])
    assert b"(last) Tj" in text and rb"(a \(b" in text and text.count(b" Do Q") == 4 and b"0.902 0.624 0.000 rg" in text


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_other_formats(run: Run, tmp_path: Path, format: str) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--layout", "row", "--format", format)[0] == 0
    written = (tmp_path / "out" / f"a.regions.{format}").read_bytes()
    assert written.startswith({"svg": b"<svg", "pdf": b"%PDF"}[format])
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"a.regions.{format}"]


@pytest.fixture
def run(model: SegCLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    save_model(model, tmp_path / "small.safetensors")

    def run(*arguments: str | Path) -> tuple[int, str]:
        argv = ["regions", *arguments, "--out", tmp_path / "out", "--model", tmp_path / "small.safetensors"]
        code = main([str(a) for a in argv])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, err

    return run


def test_the_command(run: Run, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "b.jpg"):
        Image.fromarray(PHOTO).save(tmp_path / name)
    (tmp_path / "bad.png").write_text("text")
    code, err = run(*(tmp_path / name for name in ("a.png", "bad.png", "b.png", "b.jpg")), "--labels", "cup", "table")
    assert code == 1 and "3 photos written" in err and "bad.png" in err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.regions.png", "b-2.regions.png", "b.regions.png"]
    drawn = [Image.open(tmp_path / "out" / name) for name in names]
    there = len(np.unique(gather(small_model(), PHOTO).hard))
    rows = -(-(2 + 2 * there) // 4)
    assert drawn[0].size == (GAP + 4 * (96 + GAP), GAP + rows * (64 + 2 * TEXT + GAP))


def test_what_cannot_be_done(run: Run, tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    assert run() == (2, "segclip: no photo given; name photos or folders of photos, before --out\n")
    code, err = run(tmp_path / "a.png", "--labels", "cup", "cup")
    assert code == 2 and "repeats" in err and err.count("\n") == 1
    code, err = run(tmp_path / "none.png")
    assert code == 2 and "none.png" in err and err.count("\n") == 1
