"""The command: what it writes, how it goes on, and one line for whatever goes wrong."""

import json
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import skimage.data
import supervision
from PIL import Image
from pycocotools.coco import COCO

from segclip.annotate import preview
from segclip.annotate.formats import FORMATS
from segclip.annotate.formats.format import Format
from segclip.annotate.segments import Collection, PhotoSegments
from segclip.annotate.store import PROGRESS, Store
from segclip.cli import main
from segclip.data.own_pictures import is_own
from segclip.data.photos import list_photos
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.utils.locks import only_one_run
from segclip.visualize import CELL, GAP, TITLE, draw_contact_sheet

Run = Callable[..., tuple[int, str]]
PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150
LABELS = ("cup", "table")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        Image.fromarray(np.roll(PHOTO, 15 * i, axis=1)[i:]).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def run(weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `segclip annotate` on photos into tmp_path/out; gives the exit code and stderr."""

    def run(*options: str | Path, folder: Path = photos, labels: tuple[str, ...] = LABELS, out: str = "out"):
        argv = ["annotate", folder, "--model", weights, "--labels", *labels, "--out", tmp_path / out, *options]
        code = main([str(a) for a in argv])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, err

    return run


def contents(out: Path) -> dict[str, bytes]:
    """The files for users; links give what they lead to."""
    names = [path for path in out.rglob("*") if path.is_file() and path.name not in (PROGRESS, ".lock")]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(names)}


def check_valid(out: Path) -> int:
    """Every file that is there can be read; gives the number of masks."""
    for path in out.rglob("*"):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".xml":
            ElementTree.parse(path)
    return len(list(out.glob("masks/*.png")))


def test_what_it_writes(run: Run, tmp_path: Path, photos: Path) -> None:
    code, err = run()
    assert code == 0 and "10 photos written" in err
    files = contents(tmp_path / "out")
    assert {name.split("/")[0] for name in files} == {
        *("coco.json", "coco-polygons.json", "panoptic.json", "cvat.xml", "cvat-labels.json", "label-studio.json"),
        *("label-studio.xml", "review.csv", "preview.jpg", "masks", "panoptic", "yolo"),
    }
    coco = COCO(tmp_path / "out/coco.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [f"{i}.png" for i in range(10)]
    assert files["yolo/images/3.png"] == (photos / "3.png").read_bytes()
    info = json.loads(files["coco.json"])["info"]
    assert "under 0.0500% of a photo's area" in info["description"] and info["labels"] == list(LABELS)
    assert not (tmp_path / "out/yolo/images/3.png").readlink().is_absolute()


def test_the_contact_sheet(run: Run, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the photos, spread over all, each with its name, tinted where something was found."""
    monkeypatch.setattr(preview, "SHOWN", 3)
    titles: list[str] = []
    monkeypatch.setattr(preview, "draw_contact_sheet", lambda tiles: draw_contact_sheet(seen(tiles, titles)))
    assert run("--presence", "none", "--background", "none")[0] == 0
    assert titles == ["0.png", "4.png", "9.png"]
    with Image.open(tmp_path / "out/preview.jpg") as sheet:
        assert sheet.size == (2 * (CELL + GAP) + GAP, 2 * (CELL + TITLE + GAP) + GAP)
        pixels = np.asarray(sheet)
    assert (pixels[-CELL // 2 :, -CELL // 2 :] == 255).all(), "three of four cells are taken"
    assert len(np.unique(pixels[: GAP + CELL, : GAP + CELL].reshape(-1, 3), axis=0)) > 100


def seen(tiles: list[tuple[Image.Image, str]], titles: list[str]) -> list[tuple[Image.Image, str]]:
    titles += [title for _, title in tiles]
    return tiles


def test_the_contact_sheet_is_no_photo_and_takes_no_photos_place(
    run: Run, tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(out="photos")[0] == 0 and is_own(photos / "preview.jpg")
    assert [path.name for path in list_photos([photos])] == [f"{i}.png" for i in range(10)]
    Image.fromarray(PHOTO).save(photos / "preview.jpg")
    before = (photos / "preview.jpg").read_bytes()
    assert run(out="photos")[0] == 0 and (photos / "preview.jpg").read_bytes() == before
    assert "preview.jpg: is a photo of your own, so no contact sheet is written" in caplog.text


def test_labels_of_a_file_and_quiet(weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "labels.txt").write_text("cup\ntable|desk\n")
    command = ["annotate", str(photos), "--model", str(weights), "--labels-file", str(tmp_path / "labels.txt")]
    assert main([*command, "-o", str(tmp_path / "out"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    info = json.loads((tmp_path / "out/coco.json").read_text())
    assert [one["name"] for one in info["categories"]] == ["cup", "table"]
    assert main(["annotate", str(photos), "--model", str(weights)]) == 2
    assert "no labels; give --labels cat dog, or --labels-file" in capsys.readouterr().err


def test_a_format_of_someone_elses(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions and one line in the table: the command writes it, about all photos and for each."""

    def write_areas(file: IO[str], found: Collection) -> None:
        for photo in found.photos():
            for segment in photo.foreground():
                file.write(f"{photo.photo} {segment.label} {segment.area}\n")

    def make_names(result: Segmentation, photo: PhotoSegments) -> bytes:
        return ",".join(segment.label for segment in photo.segments).encode()

    mine = Format(
        files={"mine/areas.txt": write_areas}, photo_files={"mine/{}.names": make_names}, photo_link="mine/photos/{}"
    )
    monkeypatch.setitem(FORMATS, "mine", mine)
    assert run("--presence", "none")[0] == 0  # random weights find little by themselves
    out = tmp_path / "out/mine"
    lines = (out / "areas.txt").read_text().splitlines()
    for photo, label, area in map(str.split, lines):
        mask = np.asarray(Image.open(tmp_path / "out/masks" / photo))
        assert int(area) == (mask == 1 + LABELS.index(label)).sum()
        assert label in (out / Path(photo).with_suffix(".names")).read_text().split(",")
    assert lines and (out / "photos/9.png").exists()


def test_options(run: Run, tmp_path: Path) -> None:
    options = (
        "--background",
        "none",
        "--presence",
        "none",
        "--protocol",
        "paper",
        "--clean",
        "0",
        "--tolerance",
        "0",
        "--device",
        "cpu",
    )
    assert run(*options)[0] == 0
    assert all(np.asarray(Image.open(path)).min() > 0 for path in (tmp_path / "out/masks").iterdir())
    info = json.loads((tmp_path / "out/coco.json").read_text())["info"]
    assert (info["background"], info["presence"], info["protocol"], info["clean"]) == (None, None, "paper", 0)
    assert "pieces" not in info["description"]


def test_the_masks_are_those_of_segment(run: Run, photos: Path, tmp_path: Path, weights: Path) -> None:
    run("--clean", "0")
    result = Segmenter(weights).segment(photos / "4.png", LABELS)
    assert (np.asarray(Image.open(tmp_path / "out/masks/4.png")) == result.labels).all()


def test_bad_photos_are_named_and_tried_again(run: Run, photos: Path, tmp_path: Path) -> None:
    good = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(good[:2000])
    (photos / "no photo.jpg").write_text("text")
    (photos / "line\nbreak.jpg").write_bytes(good)
    code, err = run()
    assert code == 1 and "9 photos written" in err and err.count("failed:") == 3
    assert "3.png" in err and "no photo.jpg" in err and "rename the photo" in err
    assert check_valid(tmp_path / "out") == 9 and len(COCO(tmp_path / "out/coco.json").imgs) == 9
    (photos / "3.png").write_bytes(good)
    (photos / "no photo.jpg").unlink()
    (photos / "line\nbreak.jpg").unlink()
    code, err = run()
    assert code == 0 and "10 photos written" in err and len(COCO(tmp_path / "out/coco.json").imgs) == 10


def test_nothing_that_can_be_read(run: Run, photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        path.write_text("text")
    code, err = run()
    assert code == 2 and err.count("failed:") == 10 and not (tmp_path / "out/coco.json").exists()


@pytest.mark.slow
def test_a_broken_run_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted twice, once with half a line written: what is done stays done, and the end is the same."""
    assert run(out="whole")[0] == 0
    add, encode, encoded = Store.add, Segmenter.encode, []

    def stop(self: Store, path: Path, annotated: object) -> None:
        add(self, path, annotated)  # type: ignore[arg-type]
        if path.name in ("2.png", "6.png"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Segmenter, "encode", lambda self, some: encoded.append(len(some)) or encode(self, some))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", stop)
        assert run()[0] == 130 and check_valid(tmp_path / "out") == 3
        with (tmp_path / "out" / PROGRESS).open("ab") as file:
            file.write(b'{"photo": "3.p')
        assert run()[0] == 130 and check_valid(tmp_path / "out") == 7
    assert not (tmp_path / "out/coco.json").exists()
    encoded.clear()
    assert run()[0] == 0 and sum(encoded) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    encoded.clear()
    assert run()[0] == 0 and not encoded, "all is done"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_goes_on(run: Run, photos: Path, tmp_path: Path, weights: Path) -> None:
    assert run(out="whole")[0] == 0
    command = [sys.executable, "-m", "segclip", "annotate", photos, "--model", weights, "--labels", *LABELS]
    out = tmp_path / "out"
    process = subprocess.Popen([*map(str, command), "--out", str(out)])
    deadline = time.monotonic() + 120
    while not list(out.glob("masks/*.png")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and check_valid(out) >= 1
    assert run()[0] == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_photos_that_come_and_go(run: Run, photos: Path, tmp_path: Path) -> None:
    """What is left is what a run from the start writes: no file of a photo that is gone, none of one that changed."""
    run()
    (photos / "5.png").unlink()
    Image.fromarray(PHOTO).save(photos / "more.jpg")
    Image.fromarray(PHOTO[40:]).save(photos / "6.png")
    Image.fromarray(PHOTO[30:]).save(photos / "8.jpg")  # takes the stem of 8.png
    (tmp_path / "out/masks/7.png").unlink()
    assert run()[0] == 0 and run(out="anew")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")
    assert sorted(path.name for path in (tmp_path / "out/yolo/images").iterdir()) == [
        *("0.png", "1.png", "2.png", "3.png", "4.png", "6.png", "7.png", "8-2.png", "8.jpg", "9.png", "more.jpg")
    ]


def test_same_stems(run: Run, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "0.png", photos / "1.tif")
    Image.fromarray(PHOTO[50:]).save(photos / "1.tif")
    assert run()[0] == 0
    sizes = [Image.open(tmp_path / f"out/masks/{stem}.png").height for stem in ("1", "1-2")]
    assert sizes == [99, 50]


def test_yolo_gets_a_png_of_photos_that_its_readers_do_not_take(run: Run, photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.iterdir())[2:]:
        path.unlink()
    Image.fromarray(PHOTO).save(photos / "a.ppm")
    Image.fromarray(PHOTO).quantize(16).save(photos / "b.GIF")
    shutil.copy(photos / "a.ppm", photos / "0.pgm")  # the stem of 0.png
    assert run()[0] == 0
    images = tmp_path / "out/yolo/images"
    assert {path.name: path.is_symlink() for path in images.iterdir()} == {
        **{"0.png": False, "0-2.png": True, "1.png": True, "a.png": False, "b.png": False}
    }
    assert (np.asarray(Image.open(images / "a.png")) == PHOTO).all()
    assert len(list_photos([images])) == 5, "they are photos, and no masks of ours"
    data = supervision.DetectionDataset.from_yolo(
        str(images), str(tmp_path / "out/yolo/labels"), str(tmp_path / "out/yolo/data.yaml"), force_masks=True
    )
    assert len(data) == 5
    (photos / "b.GIF").unlink()
    assert run()[0] == 0 and not (images / "b.png").exists()


def test_labels_that_no_file_could_hold_are_cleaned_first(run: Run, tmp_path: Path) -> None:
    assert run(labels=("\ufeffcup", "ta\u200bble"))[0] == 0
    names = [one["name"] for one in json.loads((tmp_path / "out/coco.json").read_text())["categories"]]
    assert names == ["cup", "table"]
    code, err = run(labels=("cup", "cat\x92s"))
    assert code == 2 and "control character U+0092" in err


def test_another_job_in_the_same_folder(run: Run, photos: Path, tmp_path: Path) -> None:
    run()
    code, err = run("--clean", "0.01", labels=("cup", "spoon"))
    assert code == 2 and "another annotation (other clean, labels)" in err and err.count("\n") == 1
    assert "(other presence)" in run("--presence", "none")[1]
    shutil.copytree(photos, tmp_path / "batch 2")
    assert "(other folder)" in run(folder=tmp_path / "batch 2")[1]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--clean", "3"), "0..0.1"),
        (("--tolerance", "-1"), "0..100"),
        (("--background", "2"), "0..1"),
        (("--presence", "0.5"), "presence '0.5'; give auto, or none"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--model", "minni"), "did you mean mini"),
    ],
)
def test_bad_options(run: Run, tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    code, err = run(*options)
    assert code == 2 and why in err and err.count("\n") == 1


@pytest.mark.parametrize("labels", [("cup", "cup"), ("cup", "a\x01b"), ("background",)])
def test_bad_labels(run: Run, labels: tuple[str, ...]) -> None:
    code, err = run(labels=labels)
    assert code == 2 and "label" in err and err.count("\n") == 1


def test_bad_folders(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(folder=tmp_path / "empty")[0] == 2
    code, err = run(folder=tmp_path / "none")
    assert code == 2 and "none: no such folder" in err
    (tmp_path / "out").write_text("")
    code, err = run()
    assert code == 2 and "cannot be written" in err


def test_without_pycocotools(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    code, err = run()
    assert code == 2 and 'pip install "segclip[annotate]"' in err and err.count("\n") == 1


def test_without_ray(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, err = run("--ray")
    assert code == 2 and 'pip install "segclip[scale]"' in err


def test_a_full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, path: Path, annotated: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "add", full)
    code, err = run()
    assert code == 2 and "disk is full" in err and "give the same command again" in err


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_files(run: Run, photos: Path, tmp_path: Path) -> None:
    import ray

    (photos / "bad.jpg").write_text("text")
    assert run(out="here")[0] == 1
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        code, err = run("--ray", out="there")
    finally:
        ray.shutdown()
    assert code == 1 and "bad.jpg" in err and "10 photos written" in err
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize("damage", ["{}", '{"photo": "0.png", "stem": "0", "stamp": [], "segments": 3}', "path"])
def test_a_damaged_line_of_the_progress_file(run: Run, tmp_path: Path, damage: str) -> None:
    """It is named, and no path in it is followed."""
    run()
    file, stranger = tmp_path / "out" / PROGRESS, tmp_path / "stranger.png"
    stranger.touch()
    line = file.read_text().splitlines()[-1]
    odd = line.replace('"stem":"9"', '"stem":"../../stranger"') if damage == "path" else damage
    assert odd != line
    file.write_text(file.read_text() + odd + "\n")
    code, err = run()
    assert code == 2 and f"{PROGRESS}: a line is damaged" in err and err.count("\n") == 1 and stranger.exists()


def test_two_runs_in_one_folder(run: Run, tmp_path: Path) -> None:
    with only_one_run(tmp_path / "out"):
        code, err = run()
    assert code == 2 and "another run is writing to this folder" in err and err.count("\n") == 1
