"""`make demo`: its photos are there, may be shown, and come out in a sheet that says what was not found."""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import skimage.data
from helpers import ROOT
from PIL import Image

LICENCES = ("CC0", "public domain")


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield import_module("demo")


def test_photos_are_those_that_were_looked_at(demo: ModuleType) -> None:
    assert len(demo.PHOTOS) >= 6
    for photo in demo.PHOTOS:
        data = (files("skimage.data") / photo.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == photo.sha256, photo.file


def test_photos_licences_are_those_that_scikit_image_gives(demo: ModuleType) -> None:
    """Its documentation of a photo has author, licence, and where the photo comes from."""
    for photo in demo.PHOTOS:
        text = " ".join((getattr(skimage.data, photo.name).__doc__ or "").split())
        assert photo.licence in LICENCES and photo.licence in text, photo.file
        assert photo.author in text, photo.file
        assert photo.source == "scikit-image" or photo.source in text, photo.file


def test_page_credits_the_same_photos(demo: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs/faq.md").read_text(), re.M)
    assert rows == [
        (photo.name, photo.author, photo.licence, re.sub(r"(https?:\S+)", r"<\1>", photo.source))
        for photo in demo.PHOTOS
    ]


def test_labels_are_few(demo: ModuleType) -> None:
    assert all(2 <= len(set(photo.labels)) == len(photo.labels) <= 5 for photo in demo.PHOTOS)


def test_demo_writes_every_file(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = demo.PHOTOS[0]
    assert demo.run(tmp_path, [photo]) == 0
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    results = {f"{photo.name}.{suffix}" for suffix in ("overlay.png", "mask.png", "json")}
    assert written == results | {"demo.jpg", f"photos/{photo.file}"}
    printed = capsys.readouterr().out
    assert str(tmp_path / "demo.jpg") in printed and f"{photo.author}, {photo.licence}" in printed


def test_failure_is_the_demos_exit_code(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "segclip", lambda arguments: 2)
    assert demo.run(tmp_path, demo.PHOTOS) == 2
    assert not (tmp_path / "demo.jpg").exists()


def write_results(folder: Path, photo: Any, found: list[dict]) -> None:
    """As `segclip segment` does: a legend stands under the photo, here a black one."""
    with Image.open(str(files("skimage.data") / photo.file)) as image:
        width, height = image.size
        overlay = Image.new("RGB", (width + 40, height + 90), "black")
        overlay.paste(image, (0, 0))
    overlay.save(folder / f"{photo.name}.overlay.png")
    record = {"width": width, "height": height, "labels": photo.labels, "found": found}
    (folder / f"{photo.name}.json").write_text(json.dumps(record))


def test_sheet_shows_all_photos_without_their_small_legends(demo: ModuleType, tmp_path: Path) -> None:
    for photo in demo.PHOTOS:
        write_results(tmp_path, photo, [{"index": 1, "share": 0.5}])
    sheet = demo.draw_sheet(tmp_path, demo.PHOTOS)
    assert sheet.width == 4 * demo.WIDTH + 3 * demo.GAP
    chelsea, rocket = (demo.draw_cell(tmp_path, demo.PHOTOS[i]) for i in (0, 3))
    assert chelsea.height > rocket.height, "a line for each label"
    step = demo.WIDTH + demo.GAP
    assert (pixels := np.array(sheet))[: chelsea.height, : demo.WIDTH].tolist() == np.array(chelsea).tolist()
    assert pixels[: rocket.height, 3 * step :].tolist() == np.array(rocket).tolist()
    assert (pixels[chelsea.height + demo.GAP :, 3 * step :] < 128).any(), "whose they are, last"


def test_cell_has_the_photo_over_a_legend(demo: ModuleType, tmp_path: Path) -> None:
    photo = demo.PHOTOS[0]
    write_results(tmp_path, photo, [{"index": 2, "share": 0.5}])
    cell = np.array(demo.draw_cell(tmp_path, photo))
    with Image.open(str(files("skimage.data") / photo.file)) as image:
        width = round(image.width * demo.HEIGHT / image.height)
        expected = np.array(image.convert("RGB").resize((width, demo.HEIGHT), Image.Resampling.BICUBIC), float)
    assert np.abs(cell[: demo.HEIGHT, :width] - expected).mean() < 1, "the overlay's own legend is cut off"
    legend = cell[demo.HEIGHT :, : demo.TEXT]
    coloured = (legend == (86, 180, 233)).all(-1)
    assert demo.LINE < coloured.any(1).argmax() < 2 * demo.LINE, "the second label's colour, in the second line"
    assert not (legend == (230, 159, 0)).all(-1).any(), "no colour for what was not found"


def test_sheet_says_what_was_not_found(demo: ModuleType) -> None:
    found = [{"index": 0, "share": 0.25}, {"index": 2, "share": 0.75}]
    lines = demo.captions({"labels": ["cat", "dog"], "found": found})
    assert lines == [(False, "cat: not found"), (True, "dog  75.0%")]


def test_sheet_can_be_drawn_of_one_photo(demo: ModuleType, tmp_path: Path) -> None:
    photo = demo.PHOTOS[3]
    write_results(tmp_path, photo, [])
    assert demo.draw_sheet(tmp_path, [photo]).width == 2 * demo.WIDTH + demo.GAP


def test_make_picture_renews_the_readmes() -> None:
    command = ["make", "--dry-run", "--no-print-directory", "picture"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[-2].endswith("python examples/demo.py") and lines[-1] == "cp demo/demo.jpg docs/images/demo.jpg"
    assert "](docs/images/demo.jpg)" in (ROOT / "README.md").read_text()
