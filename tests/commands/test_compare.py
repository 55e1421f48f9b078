"""`segclip compare`: a sheet of models, heads and protocols."""

from pathlib import Path

import pytest
from helpers.pixels import random_photo
from helpers.small_model import PLAIN, small_model
from PIL import Image

from segclip.checkpoints.native import save_model
from segclip.cli import main
from segclip.data.own_pictures import is_own
from segclip.visualize import draw_side_by_side


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(random_photo(60, 90)).save(path)
    return path


def test_a_sheet(tmp_path: Path, photo: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads are for plain CLIPs; what cannot be loaded has its place on the sheet, and its line."""
    save_model(small_model(PLAIN), tmp_path / "plain.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"text")
    models = [str(weights), str(tmp_path / "bad.safetensors"), str(tmp_path / "plain.safetensors")]
    options = ["--labels", "cat|kitten", "dog", "--heads", "naclip", "sclip", "--protocols", "open", "paper"]
    out = tmp_path / "new" / "sheet.png"
    assert main(["compare", str(photo), *options, "--models", *models, "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert told.out.count("paper") == told.out.count("open") == 3 and told.out.count("sclip") == 2
    assert "bad.safetensors" in told.err and "Traceback" not in told.err
    eight = [("title", Image.new("RGB", (90, 60)))] * 8  # the photo, 1 x 2, the bad one, 2 x 2
    with Image.open(out) as sheet:
        assert sheet.width == draw_side_by_side(eight).width and len(sheet.convert("RGB").getcolors(1 << 24)) > 500
    assert is_own(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "nacl"], "head 'nacl'; known are naclip"),
        (["--protocols", "opened"], "protocol 'opened'"),
        (["--out", "sheet.jpg"], "sheet.jpg: the sheet is a PNG"),
        (["--models", "none.safetensors"], "none.safetensors: no such file"),
    ],
)
def test_what_cannot_be_done(
    options: list[str],
    message: str,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(photo), "--labels", "cat", *options]) == 2
    err = capsys.readouterr().err
    assert message in " ".join(err.split()) and not list(tmp_path.glob("*sheet*")) + list(tmp_path.glob("compare*"))
