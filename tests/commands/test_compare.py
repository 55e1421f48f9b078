"""`segclip compare`: a sheet with a place for each way, and for each that failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from segclip import Segmenter
from segclip.cli import main
from segclip.commands import compare
from segclip.data.own_pictures import is_own
from segclip.visualize import draw_side_by_side, scale_down

Run = Callable[..., tuple[int, str, str]]
LABELS = ["cup|mug", "table"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "cup.png"
    Image.fromarray(skimage.data.coffee()[::4, ::4]).save(path)  # 100x150
    return path


@pytest.fixture
def run(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path, out: str | Path = "sheet.png", photo: Path = photo) -> tuple[int, str, str]:
        argv = ["compare", photo, "--labels", *LABELS, "--out", tmp_path / out, *arguments]
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, " ".join(captured.err.split())

    return run


def kept_pictures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Image.Image | str]]:
    """What is drawn, in order."""
    kept: list[tuple[str, Image.Image | str]] = []
    monkeypatch.setattr(compare, "draw_side_by_side", lambda drawn: kept.extend(drawn) or draw_side_by_side(drawn))
    return kept


def test_each_head_and_protocol_has_its_place(
    run: Run, photo: Path, plain_clip: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = kept_pictures(monkeypatch)
    heads, protocols = ("--heads", "naclip", "sclip", "sclip"), ("--protocols", "open", "paper")
    ways = ("--models", plain_clip, weights, plain_clip, *heads, *protocols)
    code, out, err = run(*ways)
    assert code == 0 and f"{weights}: has learned centers, and no dense head; shown once" in err
    own = [f"{plain_clip} {head} {protocol}" for head in ("naclip", "sclip") for protocol in ("open", "paper")]
    titles = [title.split(": ")[0] for title, _ in pictures]
    assert titles == ["the photo", *own, f"{weights} open", f"{weights} paper"]
    assert all(float(title.split(": ")[1].removesuffix(" s")) >= 0 for title, _ in pictures[1:])
    assert out.count("sclip") == 2 and out.count("paper") == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 480 and sheet.height > 3 * 320
    assert is_own(tmp_path / "sheet.png")
    for number, head in ((1, "naclip"), (3, "sclip")):
        expected = Segmenter(plain_clip, head=head, device="cpu").segment(photo, LABELS).overlay()
        np.testing.assert_array_equal(np.asarray(pictures[number][1]), np.asarray(expected))


def test_what_fails_stops_no_other(run: Run, plain_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = kept_pictures(monkeypatch)
    (tmp_path / "half.safetensors").write_bytes(plain_clip.read_bytes()[:1000])
    segment = compare._segment

    def refuse(model: Any, head: str | None, *rest: Any) -> Any:
        if head == "sclip":
            raise ValueError("no room for it")
        return segment(model, head, *rest)

    monkeypatch.setattr(compare, "_segment", refuse)
    models = (tmp_path / "half.safetensors", plain_clip, tmp_path / "nowhere.safetensors")
    code, out, err = run("--models", *models, "--heads", "sclip", "naclip", out="new/sheet.jpg")
    assert code == 1 and "naclip" in out and "sclip" not in out
    assert [isinstance(picture, str) for _, picture in pictures] == [False, True, True, False, True]
    assert pictures[2] == (f"{plain_clip} sclip open", f"{plain_clip} sclip open: no room for it")
    for name, reason in (("half.safetensors", "truncated"), ("nowhere.safetensors", "no such file")):
        place = next(picture for title, picture in pictures if name in title)
        assert isinstance(place, str) and name in place and reason in place and name in err
    assert "no room for it" in err
    with Image.open(tmp_path / "new/sheet.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.width > 3 * 480
    assert is_own(tmp_path / "new/sheet.jpg")


def test_nothing_is_written_where_all_failed(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--models", tmp_path / "nowhere.safetensors")
    assert code == 2 and not out and "nowhere.safetensors: no such file" in err
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "out", "message"),
    [
        (["--heads", "best"], "sheet.png", "head 'best'; known are naclip, sclip"),
        (["--protocols", "best"], "sheet.png", "protocol 'best'; known are open, paper"),
        (["--background", "2"], "sheet.png", "background"),
        ([], "sheet.gif", "sheet.gif: expected a file that ends in .png or .jpg"),
        ([], "cup.png", "cup.png: is the photo itself, which would be lost"),
        ([], "folder.png", "folder.png: is a folder"),
        (["--models"], "sheet.png", "nothing to compare; give at least one of --models"),
    ],
)
def test_mistakes(run: Run, tmp_path: Path, photo: Path, arguments: list[str], out: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    before = photo.read_bytes()
    code, _, err = run(*arguments, out=out)
    assert code == 2 and message in err
    assert photo.read_bytes() == before and not (tmp_path / "sheet.png").exists()


def test_a_photo_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    code, _, err = run(photo=tmp_path / "nowhere.jpg")
    assert code == 2 and "nowhere.jpg" in err and not (tmp_path / "sheet.png").exists()


def test_pictures_side_by_side() -> None:
    red, blue = (Image.new("RGB", size, colour) for size, colour in (((60, 40), "red"), ((60, 20), "blue")))
    few = np.asarray(draw_side_by_side([("a", red), ("b: 1.00 s", blue), ("c", "no such file")], side=60))
    tops = []
    for colour, area in (((255, 0, 0), 60 * 40), ((0, 0, 255), 60 * 20)):
        rows, columns = (few == colour).all(axis=-1).nonzero()
        assert len(rows) == area
        tops.append((rows.min(), columns.min()))
    assert tops[0][0] == tops[1][0] and tops[0][1] < tops[1][1]  # at one height
    assert few.shape[1] == 12 + 3 * 72 and (few[:, tops[1][1] + 72 :] < 128).any()  # the words of what has no picture
    many = draw_side_by_side([(str(i), red) for i in range(100)], side=60)
    assert many.width == 12 + 10 * 72  # as many across as down


def test_titles_are_whole_and_stay_in_their_place() -> None:
    """However long, with letters that no font has, or of no picture at all."""
    long = "/a/folder/of/a/name" * 30 + " " + "\U00013000" * 3
    short, sheet = (
        np.asarray(draw_side_by_side([(title, "why"), ("b", title)], side=480)) for title in (long[:100], long)
    )
    assert sheet.shape[1] == 12 + 2 * (480 + 12) and sheet.shape[0] > short.shape[0] + 5 * 20
    edge = 2  # pixels that a letter may lean out, to either side
    assert (sheet[:, 12 + 480 + edge : 24 + 480 - edge] == 255).all() and (sheet[:, edge - 12 :] == 255).all()


def test_large_photos_are_scaled_and_small_ones_are_not() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), 400)[:, None].repeat(600, axis=1)
    photo = np.zeros((1200, 600, 3), np.uint8)
    small, map_ = scale_down(photo, labels)
    assert small.shape == (480, 240, 3) and map_.shape == (480, 240)
    np.testing.assert_array_equal(np.bincount(map_.ravel()), [160 * 240] * 3)
    assert scale_down(photo[:100, :100], labels[:100, :100])[0].shape == (100, 100, 3)


def test_labels_of_a_file(plain_clip: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("cup|mug\ntable\n")
    argv = ["compare", photo, "--labels-file", tmp_path / "labels.txt", "--out", tmp_path / "of-file.png"]
    assert main([str(a) for a in (*argv, "--models", plain_clip, "--background", "none")]) == 0
    assert "cup" in capsys.readouterr().out and (tmp_path / "of-file.png").stat().st_size
