"""`segclip prepare`: right samples, the same bytes however it runs or breaks, nothing lost silently."""

import io
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from filelock import FileLock
from helpers.dying_work import dying
from helpers.shard_files import FAST, contents, make_source, map_serially
from helpers.source_files import sample, write, write_json, write_tar
from PIL import Image
from webdataset.compat import WebDataset

from segclip.cli import main
from segclip.data import prepare as prepare_module
from segclip.data import shard_writer
from segclip.data.prepare import Settings, map_locally, map_over_cluster, prepare
from segclip.data.shard_writer import ShardWriter
from segclip.data.shards import Index, Shards
from segclip.data.sources import pairs as pairs_module
from segclip.data.sources.open import open_source
from segclip.data.superpixels import Method, find_superpixels

SMALL = replace(FAST, shard_mb=0.05)  # several shards


def run(source: Path, out: Path, settings: Settings = FAST, **options: Any) -> Index:
    options.setdefault("map_chunks", map_serially)
    return prepare(open_source(source), out, settings, **options)


def report(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("prepare") / "source", 70)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that was not broken."""
    out = tmp_path_factory.mktemp("whole")
    index = run(source, out, SMALL)
    assert len(index.shards) > 3 and all(shard.bytes <= 50_000 for shard in index.shards)
    return contents(out)


def test_small_photos_are_stored_as_they_are_and_large_ones_scaled_down(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 2, [{"image": "big.png", "captions": ["a cat", "ein Käfer"], "kind": 3}])
    Image.fromarray(skimage.data.chelsea()).save(source / "big.png")  # 451x300
    index = run(source, tmp_path / "out", Settings())
    assert (index.samples, index.captions, index.seen, index.left_out, index.duplicates) == (3, 5, 3, {}, 0)
    small, _, big = (Shards(tmp_path / "out")[number] for number in range(3))
    assert small.photo_file == (source / "0.jpg").read_bytes()
    assert small.record == {"captions": ["photo 0, caption 0"], "photo": "0.jpg", "meta": {"kind": "test"}}
    assert big.captions == ["a cat", "ein Käfer"]
    photo = big.photo()
    assert photo.shape == (256, 385, 3)
    expected = Image.fromarray(skimage.data.chelsea()).resize((385, 256), Image.Resampling.LANCZOS)
    assert np.abs(photo.astype(int) - np.asarray(expected)).mean() < 3  # JPEG's error
    for one in (small, big):  # found on the photo as stored
        np.testing.assert_array_equal(one.superpixels(), find_superpixels(one.photo(), "scikit-image"))


def test_webdataset_reads_the_shards(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(whole["pairs-000001.tar"])
    samples = list(WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False))
    assert len(samples) == len(np.load(io.BytesIO(whole["pairs-000001.npy"])))
    first = samples[0]
    record = json.loads(first["json"])
    assert first["jpg"] == (source / record["photo"]).read_bytes()
    with Image.open(io.BytesIO(first["superpixels.png"])) as image:
        assert image.mode.startswith("I") and np.asarray(image).dtype.itemsize >= 2
    with tarfile.open(tmp_path / "shard.tar") as tar:
        assert all(member.mtime == 0 and member.uid == 0 for member in tar)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_do_not_depend_on_the_workers(
    source: Path, whole: dict[str, bytes], workers: int, tmp_path: Path
) -> None:
    shares = []
    run(
        source,
        tmp_path,
        SMALL,
        map_chunks=lambda work, chunks: map_locally(work, chunks, workers),
        watch=lambda read, seen: shares.append((read, seen)),
    )
    assert contents(tmp_path) == whole
    assert shares == sorted(shares) and shares[-1] == (1.0, 70)


def test_a_second_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path, SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    run(source, tmp_path, SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"} == before


class Break(BaseException):
    """What a kill is, for a test that wants it at a certain moment."""


@pytest.mark.parametrize("moment", ["replace", "commit", "write"])
def test_broken_at_any_place_it_ends_with_the_same_bytes(
    source: Path, whole: dict[str, bytes], moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break at the first call of what changes the disk, go on and break at the second, and so on to the end."""
    monkeypatch.setattr(shard_writer, "SAVE_EVERY", 0)
    monkeypatch.setattr(prepare_module, "CHUNK", 8)
    owner, name = {"replace": (os, "replace"), "commit": (ShardWriter, "_commit"), "write": (shard_writer, "_write")}[
        moment
    ]
    real = getattr(owner, name)
    left, after = [0], [False]

    def breaking(*args):
        left[0] -= 1
        if left[0] < 0 and not after[0]:
            raise Break
        value = real(*args)
        if left[0] < 0:
            raise Break
        return value

    monkeypatch.setattr(owner, name, breaking)
    breaks = 0
    for attempt in range(200):
        left[0], after[0] = attempt // 2, bool(attempt % 2)  # right before, and right after the call
        try:
            run(source, tmp_path, SMALL)
            break
        except Break:
            breaks += 1
            finished = [path.name for path in tmp_path.glob("*.tar")]
            assert all((tmp_path / shard).read_bytes() == whole[shard] for shard in finished)
    assert breaks > 5
    assert contents(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ps"), reason="needs ps, to see processes that are left")
def test_killed_at_random_it_ends_with_the_same_bytes_and_leaves_no_process(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "segclip", "prepare", str(source)]
    command += ["--superpixels", "opencv", "--shard-mb", "0.05", "--workers", "2", "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "timed")], check=True, capture_output=True)
    seconds = time.monotonic() - start  # of a whole run, on this machine
    command.append(str(tmp_path / "out"))
    generator, kills = random.Random(1), 0  # the first kill comes early
    for _ in range(20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.wait(timeout=generator.uniform(0.2, 0.7) * seconds)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            deadline = time.monotonic() + 10
            while _session_lives(process.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not _session_lives(process.pid), "workers outlive a killed run"
    if process.returncode:
        subprocess.run(command, check=True)
    assert kills
    assert contents(tmp_path / "out") == whole


def _session_lives(session: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in found)


def test_what_is_bad_is_left_out_by_kind_and_duplicates_are_kept(tmp_path: Path) -> None:
    names = ["none.jpg", "broken.jpg", "tiny.png", "0.jpg", "bomb.png", "silent.jpg"]
    lines = [{"image": name, "captions": ["x"] if name != "silent.jpg" else []} for name in names]
    source = make_source(tmp_path / "source", 4, lines)
    (source / "broken.jpg").write_bytes((source / "1.jpg").read_bytes()[:500])
    (source / "silent.jpg").write_bytes((source / "1.jpg").read_bytes())
    Image.new("RGB", (300, 63)).save(source / "tiny.png")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    (source / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(
        ValueError, match=r"5 of 10 photos cannot be used \(1 captionless, 2 corrupt, 1 missing, 1 tiny\)"
    ):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists() and len(report(tmp_path / "out")) == 6
    index = run(source, tmp_path / "out", max_bad=0.6)  # the same folder goes on
    assert index.left_out == {"captionless": 1, "corrupt": 2, "missing": 1, "tiny": 1}
    assert (index.samples, index.seen, index.duplicates) == (5, 10, 1)
    found = {line["photo"]: (line["item"], line["kind"], line["why"]) for line in report(tmp_path / "out")}
    assert found["none.jpg"] == (4, "missing", "no such file")
    assert found["0.jpg"] == (7, "duplicate", "the same file as 0.jpg; kept")
    assert found["tiny.png"][1:] == ("tiny", "300x63 px; the short side must have 64")
    assert found["broken.jpg"][1] == "corrupt" and "broken image" in found["broken.jpg"][2]
    assert "decompression bomb" in found["bomb.png"][2]
    assert found["silent.jpg"][1] == "captionless"
    kept = [Shards(tmp_path / "out")[number] for number in range(5)]
    assert [sample.key for sample in kept] == [f"{pair:09d}" for pair in (0, 1, 2, 3, 7)]


def test_bad_lines_are_named_and_counted(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", 4)
    bad = ['{"image": "0.jpg", "caption": "a", "by": "\\ud800"}', '{"image": "0.jpg", "caption": "a", "x": 1e999}']
    bad += ['{"image": "0.jpg", "caption": "a", "x": ' + "[" * 600 + "]" * 600 + "}", "{oops", '"\\ud800"']
    with (source / "pairs.jsonl").open("a") as lines:
        lines.write("\n" + "\n".join(bad))
    index = run(source, tmp_path / "out", max_bad=0.6, map_chunks=lambda *work: map_locally(*work, workers=1))
    assert (index.samples, index.seen, index.left_out) == (4, 9, {"corrupt": 5})
    assert [line["photo"] for line in report(tmp_path / "out")] == [f"pairs.jsonl, line {i}" for i in range(5, 10)]


def test_what_is_no_file_is_bad_and_hangs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "MOST_BYTES", 100_000)
    names = ["fifo.jpg", "null.jpg", "folder.jpg", "loop.jpg", "dead.jpg", f"{'a' * 300}.jpg", "sparse.jpg"]
    source = make_source(tmp_path / "source", 4, [{"image": name, "captions": ["x"]} for name in names])
    os.mkfifo(source / "fifo.jpg")
    (source / "null.jpg").symlink_to("/dev/zero")
    (source / "folder.jpg").mkdir()
    (source / "loop.jpg").symlink_to("loop.jpg")
    (source / "dead.jpg").symlink_to("none.jpg")
    with (source / "sparse.jpg").open("wb") as file:
        file.truncate(1_000_000)
    index = run(source, tmp_path / "out", max_bad=0.7)
    assert (index.samples, index.left_out) == (4, {"corrupt": 6, "missing": 1})
    assert [line["photo"] for line in report(tmp_path / "out")] == names


@pytest.mark.parametrize("error", [ZeroDivisionError("odd"), MemoryError("large"), RuntimeError("\ud800")])
def test_whatever_a_library_raises_is_of_one_photo(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_error(photo: np.ndarray, method: Method) -> np.ndarray:
        if photo.shape[0] == 81:
            raise error
        return find_superpixels(photo, method)

    monkeypatch.setattr(prepare_module, "find_superpixels", raise_error)
    index = run(make_source(tmp_path / "source", 4), tmp_path / "out", max_bad=0.5)
    assert (index.samples, index.left_out) == (3, {"corrupt": 1})
    (line,) = report(tmp_path / "out")
    assert line["photo"] == "1.jpg" and line["why"].startswith(f"cannot be used ({type(error).__name__}: ")


def test_photos_of_a_tar_that_are_not_used_have_their_lines(tmp_path: Path) -> None:
    files = contents(make_source(tmp_path / "source", 4))
    photos = [files[f"{number}.jpg"] for number in range(4)]
    members = [("cam.2024.1.jpg", photos[0]), ("sample0.input.jpg", photos[1]), ("sample0.outputs.txt", b"a cat")]
    members += [("a.jfif", photos[2]), ("b.heic", b"x"), ("b.txt", b"a cat"), ("c.jpg", photos[3]), ("c.png", b"x")]
    write_tar(tmp_path / "0.tar", [*members, ("cam.2024.1.txt", b"a cat"), ("a.json", b'{"text": "a dog"}')])
    with pytest.raises(ValueError, match=r"5 of 7 photos cannot be used \(1 captionless, 3 corrupt, 1 missing\)"):
        run(tmp_path / "0.tar", tmp_path / "out")
    index = run(tmp_path / "0.tar", tmp_path / "out", max_bad=0.8)
    assert index.samples == 2
    names = ["sample0.input.jpg", "sample0.outputs.txt", "b.heic", "c.jpg", "c.png"]
    assert [line["photo"] for line in report(tmp_path / "out")] == [f"0.tar/{name}" for name in names]


def spoil_nothing(out: Path) -> None:
    """The run goes on."""


def spoil_all(out: Path) -> None:
    (out / "progress.sqlite").write_bytes(b"x" * 5000)


def spoil_a_page(out: Path) -> None:
    path = out / "progress.sqlite"
    path.write_bytes(path.read_bytes()[:4096] + b"x" * (path.stat().st_size - 4096))


def spoil_a_value(out: Path) -> None:
    with sqlite3.connect(out / "progress.sqlite") as database:
        database.execute("UPDATE run SET seen = 'many'")


def spoil_a_table(out: Path) -> None:
    with sqlite3.connect(out / "progress.sqlite") as database:
        database.execute("ALTER TABLE report RENAME COLUMN kind TO sort")


def cut_the_open_shard(out: Path) -> None:
    (path,) = out.glob("*.tar.part")
    os.truncate(path, path.stat().st_size - 1)


def delete_a_shard(out: Path) -> None:
    (out / "pairs-000000.tar").unlink()


@pytest.mark.parametrize(
    "spoil",
    [spoil_nothing, spoil_all, spoil_a_page, spoil_a_value, spoil_a_table, cut_the_open_shard, delete_a_shard],
)
def test_a_damaged_progress_says_which_file_and_what_to_do(
    source: Path, tmp_path: Path, whole: dict[str, bytes], spoil: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "SAVE_EVERY", 0)

    def breaking(work, chunks):
        for number, done in enumerate(map_serially(work, chunks)):
            if number == 5:
                raise Break
            yield done

    with pytest.raises(Break):
        run(source, tmp_path, SMALL, map_chunks=breaking)
    spoil(tmp_path)
    if spoil is spoil_nothing:
        run(source, tmp_path, SMALL)
        assert contents(tmp_path) == whole
        return
    with pytest.raises(
        ValueError, match=rf"progress\.sqlite: damaged, .*; delete the folder {tmp_path} and give the same"
    ):
        run(source, tmp_path, SMALL)


def test_a_source_that_is_bad_all_along_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "SEEN", 32)
    lines = [{"image": f"none{number}.jpg", "captions": ["x"]} for number in range(200)]
    with pytest.raises(ValueError, match=r"8 of 40 photos cannot be used \(8 missing\).*none0.jpg: no such file"):
        run(make_source(tmp_path / "source", 32, lines), tmp_path / "out")


def test_a_source_of_bad_photos_only_gives_no_shards(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", '{"image": "none.jpg", "captions": ["x"]}')
    with pytest.raises(ValueError, match="1 of 1 photos cannot be used"):
        run(source, tmp_path / "out", max_bad=1.0)


def test_coco_and_img2dataset(tmp_path: Path) -> None:
    files = contents(make_source(tmp_path / "source", 2))
    write(tmp_path / "coco/val2017/1.jpg", files["0.jpg"])
    caption = {"image_id": 7, "caption": "a cat"}
    document = {"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": [caption, {**caption, "caption": "a pet"}]}
    write_json(tmp_path / "coco/annotations/captions_val2017.json", document)
    run(tmp_path / "coco", tmp_path / "a")
    (found,) = (Shards(tmp_path / "a")[number] for number in range(1))
    assert found.captions == ["a cat", "a pet"] and found.record["meta"] == {"id": 7}
    assert found.photo_file == files["0.jpg"]

    members = [
        ("000.jpg", files["0.jpg"]),
        ("000.txt", b"a cat"),
        ("001.txt", b"no photo"),
        ("002.jpg", files["1.jpg"]),
    ]
    write_tar(tmp_path / "tars/00000.tar", [*members, ("003.jpg", files["1.jpg"]), ("003.txt", b"a dog")])
    index = run(tmp_path / "tars", tmp_path / "b", max_bad=0.5)
    assert index.left_out == {"captionless": 1, "missing": 1}
    assert [Shards(tmp_path / "b")[number].captions for number in range(2)] == [["a cat"], ["a dog"]]


def test_a_cut_tar_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "tars/00000.tar", sample("0", "a cat"))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"00000\.tar: cut off or damaged"):
        run(tmp_path / "tars", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar")) and not (tmp_path / "out" / "index.json").exists()


def test_a_run_that_fails_at_its_start_leaves_the_folder_free(source: Path, tmp_path: Path) -> None:
    """Another source can be prepared into it; a run that has done something keeps it."""
    bad = write(tmp_path / "bad.csv", "image,image\na.jpg,b\n")
    with pytest.raises(ValueError, match=r"bad\.csv"):
        run(bad, tmp_path / "out")
    assert not [path.name for path in (tmp_path / "out").glob("*") if path.name != ".lock"]

    def failing(work, chunks):
        raise ValueError("first line")
        yield

    with pytest.raises(ValueError, match="first line"):
        run(source, tmp_path / "out", SMALL, map_chunks=failing)
    assert not (tmp_path / "out" / shard_writer.DATABASE).exists()
    assert run(source, tmp_path / "out", FAST).samples == 70


def test_a_full_disk_keeps_what_is_done(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segclip", "prepare", str(source), "--out", str(tmp_path / "out")]
    command += ["--superpixels", "opencv", "--shard-mb", "0.05", "--workers", "1"]

    def quota() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (45_000, 45_000))

    result = subprocess.run(command, preexec_fn=quota, capture_output=True, text=True)
    assert result.returncode == 2 and "the disk is full" in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("*.tar"))
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path / "out") == whole


def test_two_runs_into_one_folder(source: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another run is writing to this folder"):
        run(source, tmp_path)


def test_another_source_or_setting_into_the_same_folder(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "done", SMALL)
    with pytest.raises(ValueError, match=r"another source or other settings, .*; give another folder"):
        run(source, tmp_path / "done", FAST)

    def breaking(work, chunks):
        yield next(map_serially(work, chunks))
        raise Break

    with pytest.raises(Break):
        run(source, tmp_path / "broken", SMALL, map_chunks=breaking)
    with pytest.raises(ValueError, match=r"was broken off here, .*; give another folder"):
        run(source, tmp_path / "broken", FAST)


@pytest.mark.parametrize("kind", ["jsonl", "table", "coco", "tar"])
def test_an_exchanged_photo_gives_no_shards_of_the_old_one(tmp_path: Path, kind: str) -> None:
    make_source(tmp_path / "old", 2)
    photo, path = tmp_path / "set/1.bmp", tmp_path / "set"
    path.mkdir()

    def write_source(number: int) -> None:
        """With photos of one size."""
        with Image.open(tmp_path / f"old/{number}.jpg") as image:
            image.crop((0, 0, 80, 80)).save(photo)
        os.utime(photo, ns=(number, number))
        match kind:
            case "jsonl":
                write(path / "a.jsonl", '{"image": "1.bmp", "caption": "a cat"}')
            case "table":
                write(path / "a.csv", "image,caption\n1.bmp,a cat\n")
            case "coco":
                document = {"images": [{"id": 7, "file_name": "1.bmp"}]}
                write_json(path / "a.json", document | {"annotations": [{"image_id": 7, "caption": "a cat"}]})
            case "tar":
                write_tar(path / "0.tar", [("1.bmp", photo.read_bytes()), ("1.txt", b"a cat")])
                os.utime(path / "0.tar", ns=(number, number))

    write_source(0)
    source = next(file for file in path.iterdir() if file != photo)
    photos = None if kind == "tar" else path
    prepare(open_source(source, photos=photos), tmp_path / "out", FAST, map_chunks=map_serially)
    prepare(open_source(source, photos=photos), tmp_path / "out", FAST, map_chunks=map_serially)
    write_source(1)
    with pytest.raises(ValueError, match="or its photos changed since; give another folder, or delete this one"):
        prepare(open_source(source, photos=photos), tmp_path / "out", FAST, map_chunks=map_serially)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"name": "../x"}, "name '../x' of the shards"),
        ({"name": "a b"}, "name 'a b' of the shards"),
        ({"name": "a" * 250}, "name 'a+' of the shards"),
        ({"side": 32}, "side 32"),
        ({"shard_mb": 0.0}, "shards of 0.0 MB"),
    ],
)
def test_settings_that_cannot_be(options: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(**options)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prepare", str(source), "--out", str(tmp_path / "out"), "--superpixels", "opencv", "--preview", "3"]
    assert main(argv) == 0
    assert "140" not in capsys.readouterr().out and Shards(tmp_path / "out").index.captions == 139
    with Image.open(tmp_path / "out" / "preview.png") as sheet:
        assert sheet.width > 900 and sheet.height > 3 * 224
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000
    for wrong, why in (
        (["--max-bad", "2"], "max-bad 2"),
        (["--workers", "0"], "workers 0"),
        (["--preview", "-1"], "preview of -1"),
        (["--format", "coco"], "no annotations/captions_*.json"),
    ):
        assert main(["prepare", str(source), "--out", str(tmp_path / "x"), *wrong]) == 2
        assert why in " ".join(capsys.readouterr().err.split())
    assert main(["prepare", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    (tmp_path / "file").touch()
    assert main(["prepare", str(source), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(
    source: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run(source, tmp_path, SMALL, map_chunks=map_over_cluster)
    finally:
        ray.shutdown()
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_a_photo_that_ends_its_process_is_named_and_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "CHUNK", 2)
    source = make_source(tmp_path / "source", 8)
    index = run(
        source,
        tmp_path / "out",
        max_bad=0.2,
        map_chunks=lambda _, chunks: map_locally(partial(dying, name="3.jpg"), chunks, 2),
    )
    assert (index.samples, index.left_out) == (7, {"corrupt": 1})
    line = {
        "item": 3,
        "kind": "corrupt",
        "photo": "3.jpg",
        "why": "reading it ended the process; its file is damaged",
    }
    assert report(tmp_path / "out") == [line]
    keys = [Shards(tmp_path / "out")[number].key for number in range(7)]
    assert keys == [f"{i:09d}" for i in range(8) if i != 3]
    assert "a worker process was killed" in caplog.text
    with pytest.raises(
        ValueError, match=r"worker processes are killed one after the other, perhaps for want of memory"
    ):
        run(source, tmp_path / "none", map_chunks=lambda _, c: map_locally(partial(dying, name="jpg"), c, 2))
