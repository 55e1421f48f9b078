"""`segclip compare`: a sheet with a place for each way, and for each that failed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from helpers.small_model import PLAIN, small_model
from PIL import Image

from segclip import Segmenter, load
from segclip.checkpoints.native import save_model
from segclip.cli import main
from segclip.commands import compare
from segclip.data.own_png import is_own_png
from segclip.visualize import TILE, Tile, draw_tiles, scale_to_tile

Run = Callable[..., tuple[int, str, str]]
LABELS = ["cup|mug", "table"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "cup.png"
    Image.fromarray(skimage.data.coffee()[::4, ::4]).save(path)  # 100x150
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP without centers."""
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_model(small_model(PLAIN), path)
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


def kept_tiles(monkeypatch: pytest.MonkeyPatch) -> list[Tile]:
    """What is drawn, in order."""
    kept: list[Tile] = []
    monkeypatch.setattr(compare, "draw_tiles", lambda tiles: kept.extend(tiles) or draw_tiles(tiles))
    return kept


def test_each_head_and_protocol_has_its_place(
    run: Run, photo: Path, clip: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = kept_tiles(monkeypatch)
    ways = ("--models", clip, weights, clip, "--heads", "naclip", "sclip", "--protocols", "open", "groupvit")
    code, out, err = run(*ways)
    assert code == 0 and f"{weights}: has learned centers, and no dense head; shown once" in err
    own = [f"{clip}, {head}, {protocol}" for head in ("naclip", "sclip") for protocol in ("open", "groupvit")]
    assert [tile.title for tile in tiles] == ["cup.png", *own, f"{weights}, open", f"{weights}, groupvit"]
    assert all(float(tile.note.removesuffix(" s")) > 0 for tile in tiles[1:])
    assert out.count("sclip") == 2 and out.count("groupvit") == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 150 and sheet.height > 2 * 100
    assert is_own_png(tmp_path / "sheet.png")
    for number, head in ((1, "naclip"), (3, "sclip")):
        expected = Segmenter(load(clip, "cpu", head=head)).segment(photo, LABELS).overlay()
        np.testing.assert_array_equal(np.asarray(tiles[number].picture), np.asarray(expected))


def test_what_fails_stops_no_other(run: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = kept_tiles(monkeypatch)
    (tmp_path / "half.safetensors").write_bytes(clip.read_bytes()[:1000])
    segment = compare._segment

    def refuse(asked: compare.Asked, model: object, way: compare.Way) -> object:
        if way.head == "sclip":
            raise ValueError("no room for it")
        return segment(asked, model, way)  # type: ignore[arg-type]

    monkeypatch.setattr(compare, "_segment", refuse)
    models = (tmp_path / "half.safetensors", clip, tmp_path / "nowhere.safetensors")
    code, out, err = run("--models", *models, "--heads", "sclip", "naclip", out="new/sheet.jpg")
    assert code == 1 and "naclip" in out and "sclip" not in out
    assert [tile.picture is None for tile in tiles] == [False, True, True, False, True]
    assert "half.safetensors" in tiles[1].title and "failed: " in tiles[1].note
    assert tiles[2].note == f"failed: {clip}, sclip, open: no room for it"
    for reason in ("half.safetensors", "no room for it", "nowhere.safetensors: no such file"):
        assert reason in err
    with Image.open(tmp_path / "new/sheet.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.width > 3 * 150


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
        ([], "sheet.gif", "sheet.gif: expected a file that ends in .png, .jpg, .jpeg"),
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


def test_a_sheet_of_tiles() -> None:
    red, blue = (Image.new("RGB", size, colour) for size, colour in (((60, 40), "red"), ((60, 20), "blue")))
    few = np.asarray(draw_tiles([Tile("a", picture=red), Tile("b", "1.00 s", blue), Tile("c", "failed: no file")]))
    tops = []
    for colour, area in (((255, 0, 0), 60 * 40), ((0, 0, 255), 60 * 20)):
        rows, columns = (few == colour).all(axis=-1).nonzero()
        assert len(rows) == area
        tops.append((rows.min(), columns.min()))
    assert tops[0][0] == tops[1][0] and tops[0][1] < tops[1][1]  # side by side, at one height
    third = few[:, tops[1][1] + 60 :]
    assert (third == 255).all(axis=(0, 2)).mean() < 1 and (third < 128).any()  # its words
    many = draw_tiles([Tile(str(i), picture=red) for i in range(100)])
    assert many.width > 10 * 60 and np.isclose(many.width, 10 * 72 + 12)  # as many down as across


def test_texts_stay_in_their_place() -> None:
    """However long, with letters that no font has, or of no picture at all."""
    long = "failed: " + "/a/folder/of/a/name" * 30 + " " + "\U00013000" * 3
    sheet = np.asarray(draw_tiles([Tile(long), Tile("b", long)]))
    assert sheet.shape[1] == 12 + 2 * (TILE + 12)
    edge = 2  # pixels that a letter may lean out, to either side
    assert (sheet[:, 12 + TILE + edge : 24 + TILE - edge] == 255).all() and (sheet[:, edge - 12 :] == 255).all()


def test_large_photos_are_scaled_and_small_ones_are_not() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), 400)[:, None].repeat(600, axis=1)
    photo = np.zeros((1200, 600, 3), np.uint8)
    small, map_ = scale_to_tile(photo, labels)
    assert small.shape == (TILE, TILE // 2, 3) and map_.shape == (TILE, TILE // 2)
    np.testing.assert_array_equal(np.bincount(map_.ravel()), [TILE * TILE // 6] * 3)
    assert scale_to_tile(photo[:100, :100], labels[:100, :100])[0].shape == (100, 100, 3)
