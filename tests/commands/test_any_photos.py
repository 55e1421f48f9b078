"""Folders of whatever people have: each photo that can be read is done, the others are named, and nothing is lost."""

import json
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from segclip.cli import main
from segclip.commands.photos import find_photos, unused_stems
from segclip.utils.failures import LONGEST, Failed, Stopped, attempt

PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
COMMANDS = ("segment", "annotate", "regions")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(PHOTO[i:]).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def run(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on photos; gives the exit code and stderr."""

    def run(command: str, *photos: Path, out: Path | None = None, labels: tuple[str, ...] = ("cup", "table")):
        paths = [str(path) for path in photos]
        out = out or tmp_path / "out"
        code = main([command, *paths, "--model", str(weights), "--labels", *labels, "--out", str(out)])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, err

    return run


def odd_exif(path: Path) -> None:
    """A good photo, whose EXIF has Make as a FLOAT; stored on its side."""
    entries = struct.pack(">HHIf", 0x10F, 11, 1, 1.5) + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
    Image.fromarray(PHOTO).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + entries + bytes(4))


def text(path: Path) -> None:
    path.write_text("no photo")


def long_name(path: Path) -> None:
    """As long as a name can be: what is added to its stem does not fit any more."""
    Image.fromarray(PHOTO).save(path.with_name("é" * 125 + "l.jpg"))


def not_utf_8(path: Path) -> None:
    Image.fromarray(PHOTO).save(path.with_name("p.jpg"))
    os.rename(path.with_name("p.jpg"), path.with_name(os.fsdecode(b"p\xff.jpg")))


BAD: dict[str, Callable[[Path], object]] = {
    "text.jpg": text,
    "pipe.jpg": os.mkfifo,
    "device.jpg": lambda path: path.symlink_to("/dev/zero"),
    "circle.jpg": lambda path: path.symlink_to(path),
    "dead.jpg": lambda path: path.symlink_to("gone.jpg"),
}
GOOD: dict[str, Callable[[Path], object]] = {"exif.jpg": odd_exif, "long.jpg": long_name, "bytes.jpg": not_utf_8}


@pytest.mark.parametrize("command", COMMANDS)
def test_one_bad_photo_stops_no_other(command: str, run: Run, folder: Path, tmp_path: Path) -> None:
    for name, make in (BAD | GOOD).items():
        make(folder / name)
    code, err = run(command, folder)
    bad = [*BAD, "rename the photo"] if command == "annotate" else list(BAD)
    assert code == 1 and err.count("failed:") == len(bad) and all(name in err for name in bad)
    assert f"{2 + len(BAD) + len(GOOD) - len(bad)} photos written" in err
    if command == "annotate":
        images = json.loads((tmp_path / "out/coco.json").read_text(encoding="utf-8"))["images"]
        sizes = {image["file_name"]: (image["width"], image["height"]) for image in images}
        assert sizes["exif.jpg"] == (100, 150) and len(sizes) == 4


def test_a_folder_whose_name_is_not_utf_8(run: Run, folder: Path, tmp_path: Path) -> None:
    renamed = tmp_path / os.fsdecode(b"f\xff")
    folder.rename(renamed)
    assert all(run(command, renamed, out=tmp_path / command)[0] == 0 for command in COMMANDS)
    out = tmp_path / "annotate"
    assert json.loads((out / "coco.json").read_text(encoding="utf-8"))["info"]["folder"] == "../f\ufffd"
    assert "?d=f%FF/0.png" in (out / "label-studio.json").read_text(encoding="utf-8")
    assert run("annotate", renamed, out=out)[0] == 0, "it goes on"


@pytest.mark.parametrize("error", [KeyError("bug"), struct.error("odd"), RecursionError("deep"), OSError(5, "I/O")])
def test_whatever_one_photo_raises_stops_no_other(
    error: Exception, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is read, segmented and written."""
    from segclip.annotate.store import Store
    from segclip.segment.segmenter import Segmenter

    def fail(name: str, found: Callable[..., object]) -> Callable[..., object]:
        def failing(*given: object, **options: object) -> object:
            seen = [getattr(one, "photo", one) for one in given]
            if any(isinstance(one, Path) and one.name == "0.png" for one in seen):
                raise error
            if any(isinstance(one, np.ndarray) and one.shape == PHOTO.shape for one in seen):
                raise error
            return found(*given, **options)

        return failing

    for owner, name in (
        ("segclip.segment.many_photos", "open_photo"),
        (Segmenter, "label"),
        (Store, "add"),
    ):
        with monkeypatch.context() as patch:
            if isinstance(owner, str):
                module = sys.modules[owner]
                patch.setattr(module, name, fail(name, getattr(module, name)))
            else:
                patch.setattr(owner, name, fail(name, getattr(owner, name)))
            code, err = run("annotate", folder, out=folder.parent / name)
            assert code == 1 and err.count("failed:") == 1 and "0.png" in err.split("failed:")[1], err


def test_the_boundary_of_an_item(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: BaseException) -> Failed:
        def work() -> Failed:
            raise error

        return attempt(Path("a/b.jpg"), work)

    monkeypatch.delenv("SEGCLIP_DEBUG", raising=False)
    assert attempt("x", lambda: 3) == 3
    assert fail(ValueError("a/b.jpg: no photo")).reason == "a/b.jpg: no photo"
    assert fail(ValueError("odd")).reason == "a/b.jpg: odd"
    assert fail(OSError(5, "Input/output error")).reason == "a/b.jpg: cannot be segmented: Input/output error"
    assert "unexpected KeyError: 'x' (set SEGCLIP_DEBUG=1 to see where)" in fail(KeyError("x")).reason
    assert len(fail(TypeError("x" * 10**6)).reason) < LONGEST + 200
    assert not caplog.records
    monkeypatch.setenv("SEGCLIP_DEBUG", "1")
    assert fail(KeyError("x")).item == "a/b.jpg" and "Traceback" in caplog.text
    for passes in (KeyboardInterrupt(), Stopped(), OSError(28, "No space left on device")):
        with pytest.raises(type(passes)):
            fail(passes)


@pytest.mark.parametrize("command", ["segment", "regions"])
def test_own_outputs_are_no_photos(command: str, run: Run, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Written beside the photos, they are left out the next time, also where a shell's pattern names them."""
    assert run(command, folder, out=folder)[0] == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run(command, folder, out=folder)[0] == 0 and "written by segclip: 0." in caplog.text
    assert run(command, *sorted(folder.glob("*.png")), out=folder)[0] == 0
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert run("annotate", folder)[0] == 0
    images = json.loads((folder.parent / "out/coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["0.png", "1.png"]


def test_masks_of_annotate_are_no_photos(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("annotate", folder)[0] == 0
    for name in ("masks", "panoptic"):
        code, err = run("segment", tmp_path / "out" / name, out=tmp_path / "again")
        assert code == 2 and "no photos in this folder" in err and "written by segclip: 0.png, 1.png" in err


def test_annotate_never_writes_over_its_photos(run: Run, folder: Path, tmp_path: Path) -> None:
    """A link to the photo would take the photo's own place."""
    (tmp_path / "set/yolo").mkdir(parents=True)
    folder.rename(tmp_path / "set/yolo/images")
    code, err = run("annotate", tmp_path / "set/yolo/images", out=tmp_path / "set")
    assert code == 2 and "give another --out" in err and err.count("\n") == 1
    assert not (tmp_path / "set/yolo/images/0.png").is_symlink()


def test_stems_fit_into_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "é" * 125
    files = [tmp_path / "a" / f"{long}.jpg", tmp_path / "b" / f"{long}.jpg", tmp_path / "{}.jpg", tmp_path / "{x}"]
    files += [tmp_path / ("a." + "x" * 250), tmp_path / ("A." + "y" * 250)]
    stems = unused_stems(files, tmp_path, ("masks/{}.overlay.png",))
    assert stems == ["é" * 121, "é" * 120 + "-2", "{}", "{x}", "a", "A-2"]
    assert caplog.text.count("too long to add to") == 2
    assert max(len(os.fsencode(f"{stem}.overlay.png")) for stem in stems) <= 255


def test_links_in_a_circle_and_names_too_long_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    given = [tmp_path / "circle.jpg", tmp_path / ("x" * 300), tmp_path / "gone.jpg"]
    assert find_photos(given) == (given, [])
    assert len(unused_stems(given, tmp_path, ("{}.png",))) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_labels_may_be_parted_by_commas(command: str, run: Run, folder: Path, tmp_path: Path) -> None:
    assert run(command, folder, labels=("cat,dog", "potted plant, grass,"))[0] == 0
    names = {"segment": "0.json", "annotate": "coco.json"}
    if command in names:
        record = json.loads((tmp_path / "out" / names[command]).read_text())
        labels = record["labels"] if command == "segment" else record["info"]["labels"]
        assert labels == ["cat", "dog", "potted plant", "grass"]


def test_a_terminal_that_cannot_print_a_letter(weights: Path, folder: Path, tmp_path: Path) -> None:
    """In a process of its own, with the encoding of an old terminal: the work is done, and so is the exit code 0."""
    (folder / "0.png").rename(folder / "猫.png")
    command = [sys.executable, "-m", "segclip", "segment", str(folder / "猫.png"), "--model", str(weights)]
    result = subprocess.run(
        [*command, "--labels", "猫", "cup", "--background", "none", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONIOENCODING": "cp1252:strict", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert rb"\u732b.png, 150x100" in result.stdout and (tmp_path / "out/猫.json").exists()


def test_what_is_left_out_is_said_by_the_command(run: Run, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "raw.cr2").touch()
    with caplog.at_level(logging.WARNING):
        assert run("segment", folder)[0] == 0
    assert "other kinds of files: raw.cr2" in caplog.text
