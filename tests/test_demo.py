"""`make demo`: its photos are there, may be shown, and come out in a sheet that says what was not found."""

import hashlib
import json
import re
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
    lines = max(len(photo.labels) for photo in demo.PHOTOS)
    assert sheet.width == 4 * demo.WIDTH + 3 * demo.GAP
    assert sheet.height == 2 * (demo.HEIGHT + lines * demo.LINE + demo.GAP)
    cell = np.array(demo.draw_cell(tmp_path, demo.PHOTOS[0]))
    picture = round(demo.WIDTH * 300 / 451)  # chelsea's height in the cell, of its 451 x 300
    assert (cell[: demo.HEIGHT - picture - 1] == 255).all(), "nothing above the picture"
    swatch = cell[demo.HEIGHT + demo.LINE // 2, demo.TEXT // 2]
    assert swatch.tolist() == [230, 159, 0], "the first label's colour"
    edge = cell[demo.HEIGHT - picture // 2, -1].astype(int)
    assert edge.min() > 20, "the black legend beside the photo is cut off"
    assert (cell[demo.HEIGHT + demo.LINE :, : demo.TEXT] == 255).all(), "no colour for what was not found"


def test_sheet_says_what_was_not_found(demo: ModuleType) -> None:
    found = [{"index": 0, "share": 0.25}, {"index": 2, "share": 0.75}]
    lines = demo.captions({"labels": ["cat", "dog"], "found": found})
    assert lines == [(False, "cat: not found"), (True, "dog  75.0%")]


def test_sheet_can_be_drawn_of_one_photo(demo: ModuleType, tmp_path: Path) -> None:
    photo = demo.PHOTOS[3]
    write_results(tmp_path, photo, [])
    assert demo.draw_sheet(tmp_path, [photo]).width == 2 * demo.WIDTH + demo.GAP
