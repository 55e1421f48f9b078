"""Sources that hold the photos themselves: img2dataset's tars, and Hugging Face datasets on disk."""

import bz2
import gzip
import json
import lzma
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shard_files import make_shards
from helpers.source_files import Members, captions, jpeg, peak, read, sample, write, write_json, write_tar

from segclip.data.photos import PHOTO_SUFFIXES
from segclip.data.sources.huggingface import Row
from segclip.data.sources.open import open_source
from segclip.data.sources.pairs import CAPTION_FIELDS, Pair
from segclip.data.sources.tars import TarMember

# img2dataset


def test_tars_give_photos_without_reading_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "00001.tar", sample("000010", "a dog", seed=2))
    write_tar(tmp_path / "00000.tar", sample("a.b/000000", "a cat", seed=0) + sample("a.b/000001", "a pet", seed=1))
    write(tmp_path / "00000.parquet", b"")
    write_json(tmp_path / "00000_stats.json", {"successes": 2})
    source = open_source(tmp_path)
    pairs = list(source.pairs())
    assert source.format == "img2dataset"
    assert [pair.name for pair in pairs] == [
        "00000.tar/a.b/000000.jpg",
        "00000.tar/a.b/000001.jpg",
        "00001.tar/000010.jpg",
    ]
    assert captions(pairs) == [("a cat",), ("a pet",), ("a dog",)]
    assert pairs[2].meta == {"url": "https://example.org/000010"}
    assert [pair.photo and pair.photo.read_bytes() for pair in pairs] == [jpeg(0), jpeg(1), jpeg(2)]
    assert 0 < pairs[0].read < pairs[1].read < 0.5 < pairs[2].read <= 1.0
    assert read(tmp_path / "00001.tar")[0].name == pairs[2].name


def test_tars_agree_with_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    others: Members = [("README", b"no key"), ("._b.txt", b"no key"), ("a.depth.png", b"other field"), ("c.TXT", b"up")]
    members = sample("a", "a cat") + sample("x/b", "a dog") + others + [("a.jpg", jpeg()), ("a.txt", b"again")]
    path = write_tar(tmp_path / "0.tar", members)
    theirs = [s for s in webdataset.WebDataset(str(path), shardshuffle=False) if "._" not in s["__key__"]]
    theirs = [s for s in theirs if {"jpg", "txt"} & s.keys()]
    ours = read(path)
    assert [pair.name.split("/", 1)[1].split(".")[0] for pair in ours] == [s["__key__"] for s in theirs]
    assert captions(ours) == [(s["txt"].decode(),) if "txt" in s else () for s in theirs]
    assert [pair.photo and pair.photo.read_bytes() for pair in ours] == [s.get("jpg") for s in theirs]


def test_names_with_dots_are_photos_of_their_own(tmp_path: Path) -> None:
    members = [m for i in range(3) for m in ((f"x.y/cam.2024.{i}.jpg", jpeg(i)), (f"x.y/cam.2024.{i}.txt", b"a cat"))]
    path = write_tar(tmp_path / "0.tar", [*members, ("cam.2024.3.jpg", jpeg())])
    pairs = read(path)
    assert [pair.name for pair in pairs] == [f"0.tar/x.y/cam.2024.{i}.jpg" for i in range(3)] + ["0.tar/cam.2024.3.jpg"]
    assert captions(pairs) == [("a cat",)] * 3 + [()] and all(pair.photo for pair in pairs)


def test_fields_that_do_not_belong_together_are_items(tmp_path: Path) -> None:
    members = [m for i in range(2) for m in ((f"sample{i}.input.jpg", jpeg()), (f"sample{i}.outputs.txt", b"a cat"))]
    pairs = read(write_tar(tmp_path / "0.tar", members))
    assert [bool(pair.photo) for pair in pairs] == [True, False] * 2
    assert captions(pairs) == [(), ("a cat",)] * 2


def test_further_fields_of_a_sample_are_no_photos_but_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = [("a.superpixels.png", b"ids"), ("a.note.txt", b"x"), ("README", b"x"), ("b.npy", b"x")]
    pairs = read(write_tar(tmp_path / "0.tar", [*fields, *sample("a", "a cat"), ("a.cls", b"3")]))
    assert captions(pairs) == [("a cat",)]
    assert "2 members of the tars are further fields of samples" in caplog.text
    assert "2 members of the tars are neither photos nor captions" in caplog.text


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [0, 2, 4, 1, 3, 5], [1, 3, 5, 0, 2, 4], [0, 2, 3, 4, 5, 1]])
def test_members_of_a_key_may_be_apart(tmp_path: Path, order: list[int]) -> None:
    members = [m for i in range(3) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.txt", f"cat {i}".encode()))]
    pairs = read(write_tar(tmp_path / "0.tar", [members[number] for number in order]))
    found = {pair.captions: pair.photo and pair.photo.read_bytes() for pair in pairs}
    assert found == {(f"cat {i}",): jpeg(i) for i in range(3)} and len(pairs) == 3
    assert not any(pair.why_bad for pair in pairs) and pairs[-1].read <= 1.0


def test_what_is_added_to_a_whole_sample_is_an_item(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample("a", "a cat"), *sample("b", "a dog"), ("a.txt", b"a pet")])
    pairs = read(path)
    assert captions(pairs) == [("a cat",), ("a dog",), ("a pet",)] and pairs[2].photo is None


def test_a_tar_takes_every_photo_suffix_and_the_caption_of_json(tmp_path: Path) -> None:
    suffixes = [*{*PHOTO_SUFFIXES, ".jfif", ".JPG", ".avif", ".heic"}]
    members = [(f"{i}{suffix}", b"photo") for i, suffix in enumerate(suffixes)]
    pairs = read(write_tar(tmp_path / "0.tar", [*members, ("x.jpg", b"photo"), ("x.json", b'{"caption": " a cat "}')]))
    assert all(pair.photo for pair in pairs) and len(pairs) == len(suffixes) + 1
    assert captions(pairs)[-2:] == [(), ("a cat",)] and pairs[-1].meta == {}


def test_unpaired_members_are_items_without_photo_or_caption(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("a.jpg", jpeg()), ("b.txt", b"a cat"), ("c.json", b"{}"), *sample("d", "x")])
    alone, text, record, whole = read(path)
    assert alone.photo and alone.captions == () and not alone.why_bad
    assert text.photo is None and text.captions == ("a cat",) and text.name == "0.tar/b.txt"
    assert record.photo is None and record.captions == ()
    assert whole.photo and whole.captions == ("x",)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("a.txt", b"caf\xe9")], "a.txt, line 1: not UTF-8"),
        ([("a.json", b'{"caption": "caf\xe9"}')], "a.json, line 1: not UTF-8"),
        ([("a.json", b"{oops")], ".json: broken JSON"),
        ([("a.json", b"[" * 100_000)], ".json: broken JSON"),
        ([("a.json", b'{"caption": "a", "x": 1e999}')], ".json: broken JSON (the number 1e999 is too large)"),
        ([("a.json", b'{"caption": "a", "url": "\\ud800"}')], "half a character"),
        ([("a.json", b'{"caption": "a", "url": ' + b"[" * 600 + b"]" * 600 + b"}")], "values in values, more than 64"),
        ([("a.json", b"[]")], ".json is a list"),
        ([("a.json", b'{"caption": 5}')], "captions 5; expected a text"),
        ([("a.txt", b"x"), ("a.TXT", b"y")], "2 texts of one kind of one key, a"),
        ([("a.txt", bytes(2_000_000))], "a.txt has 2000000 bytes; at most"),
    ],
)
def test_a_bad_sample_of_a_tar_says_why(tmp_path: Path, members: Members, why: str) -> None:
    path = write_tar(tmp_path / "0.tar", [("a.jpg", jpeg()), *members, *sample("b", "a cat")])
    bad, good = read(path)
    assert why in bad.why_bad and bad.captions == () and bad.name == "0.tar/a.jpg"
    assert good.captions == ("a cat",) and not good.why_bad


def test_each_of_two_photos_of_one_key_is_an_item(tmp_path: Path) -> None:
    pairs = read(write_tar(tmp_path / "0.tar", [("a.jpg", jpeg()), ("a.png", b"photo"), ("a.txt", b"a cat")]))
    assert [pair.name for pair in pairs] == ["0.tar/a.jpg", "0.tar/a.png"]
    assert all(pair.why_bad == "2 photos of one key, a; expected one" for pair in pairs)


@pytest.mark.parametrize("field", CAPTION_FIELDS)
def test_the_json_of_a_tar_may_have_any_field_of_captions(tmp_path: Path, field: str) -> None:
    record = json.dumps({field: ["a cat", "a pet"], "url": "u"}).encode()
    (pair,) = read(write_tar(tmp_path / "0.tar", [("a.jpg", jpeg()), ("a.json", record)]))
    assert pair.captions == ("a cat", "a pet") and pair.meta == {"url": "u"}


def test_our_own_shards_are_tars_with_captions(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 3)
    pairs = read(shards.folder / "pairs-000000.tar")
    assert captions(pairs) == [tuple(shards[number].captions) for number in range(3)]


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)])
def test_a_compressed_tar_is_told(tmp_path: Path, kind: str, pack: Callable[[bytes], bytes]) -> None:
    path = write_tar(tmp_path / "0.tar", sample("0", "a cat"))
    packed = pack(path.read_bytes())
    path.write_bytes(packed + bytes(-len(packed) % 512))
    with pytest.raises(ValueError, match=rf"0\.tar: compressed by {kind}, .* unpack it to a plain tar first"):
        read(path)


def test_compressed_tars_in_a_folder_and_upper_case_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "0.TAR", sample("0", "a cat"))
    write(tmp_path / "1.tar.gz", b"")
    assert captions(read(tmp_path)) == [("a cat",)]
    assert "1 compressed tars are not read, such as 1.tar.gz" in caplog.text
    (tmp_path / "0.TAR").unlink()
    with pytest.raises(ValueError, match=r"no \*\.tar in this folder; .* not compressed"):
        read(tmp_path, "img2dataset")


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "x/../../a.jpg", "C:\\a.jpg", "x\\..\\a.jpg"])
def test_a_tar_with_unsafe_names_is_refused(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample("0", "a cat"), (name, jpeg())])
    with pytest.raises(ValueError, match=r"0\.tar, member .*a\.jpg': leaves the folder"):
        read(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_links_or_devices_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        folder, link = tarfile.TarInfo("."), tarfile.TarInfo("a.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, kind, "/etc/passwd"
        tar.addfile(folder)
        tar.addfile(link)
    with pytest.raises(ValueError, match=r"0\.tar, member 'a\.jpg': a link, device or sparse file"):
        read(tmp_path / "0.tar")


def cut(data: bytes) -> Iterator[tuple[str, bytes]]:
    second = data.index(b"000001.jpg")
    yield "empty", b""
    yield "no multiple of 512", data[:-100]
    yield "end mark is missing", data[: second + 512]
    yield "end mark is missing", bytes(512)
    yield "no valid header at byte", data[:second] + b"\xff" * 512 + data[second + 512 :]
    yield "no valid header at byte", data + data  # put together
    yield "only zeros after byte", data[:second] + bytes(2_000_000 // 512 * 512)  # a reserved file, never filled
    yield "", b"\xff" * 1024 + bytes(1024)  # no tar at all: the words are tarfile's


@pytest.mark.parametrize("case", range(8))
def test_a_cut_or_damaged_tar_is_named(tmp_path: Path, case: int) -> None:
    whole = write_tar(tmp_path / "00000.tar", sample("000000", "a cat") + sample("000001", "a dog"))
    why, data = list(cut(whole.read_bytes()))[case]
    write(tmp_path / "00001.tar", data)
    with pytest.raises(ValueError, match=rf"00001\.tar: cut off or damaged \(.*{why}.*\) after . samples; fetch it"):
        read(tmp_path)


def test_a_cut_tar_is_told_before_the_first_item(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "00000.tar", sample("000000", "a cat"))
    write(tmp_path / "00001.tar", whole.read_bytes()[:1024])
    with pytest.raises(ValueError, match=r"00001\.tar: cut off"):
        next(open_source(tmp_path).pairs())


def test_a_member_that_ends_after_its_tar_is_damage(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "0.tar", sample("0", "a cat")).read_bytes()
    write_tar(tmp_path / "0.tar", [*sample("0", "a cat"), ("1.jpg", bytes(40_000))])
    data = (tmp_path / "0.tar").read_bytes()
    write(tmp_path / "0.tar", data[: len(whole)])  # its end is inside the zeros of 1.jpg, and looks like an end mark
    with pytest.raises(ValueError, match=r"0\.tar: cut off or damaged \(.*\) after 1 samples"):
        read(tmp_path)


def test_a_photo_of_a_tar_that_shrank_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ends inside a photo"):
        TarMember(write(tmp_path / "0.tar", b"abc"), 1, 10).read_bytes()
    with pytest.raises(FileNotFoundError):
        (tmp_path / "no.jpg").read_bytes()
    with pytest.raises(OSError, match=r"2\d+ bytes; at most"):
        TarMember(tmp_path / "0.tar", 1, 2 << 30).read_bytes()


def test_photo_bytes_stay_where_they_are(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).bytes(8_000_000)
    found, memory = peak(write_tar(tmp_path / "0.tar", [(f"{i}.jpg", photo) for i in range(3)]))
    assert found == 3 and memory < 4_000_000


# Hugging Face


def rows(seeds: list[int]) -> Any:
    datasets = pytest.importorskip("datasets")
    table = {
        "image": [{"bytes": jpeg(seed), "path": None} for seed in seeds],
        "caption": [[f"a cat {seed}", " "] for seed in seeds],
        "url": [f"https://example.org/{seed}" for seed in seeds],
        "score": [float("nan") if seed == 1 else 0.5 for seed in seeds],
        "box": [[0, 1] for _ in seeds],
    }
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())


def check_rows(pairs: list[Pair], seeds: list[int]) -> None:
    assert [pair.name for pair in pairs] == [f"row {i}" for i in range(len(seeds))]
    assert captions(pairs) == [(f"a cat {seed}",) for seed in seeds]
    assert pairs[0].meta == {"url": f"https://example.org/{seeds[0]}", "score": 0.5} and pairs[-1].read == 1.0
    assert pairs[1].meta["score"] is None
    assert [pair.photo and pair.photo.read_bytes() for pair in pairs] == [jpeg(seed) for seed in seeds]


def test_a_saved_dataset(tmp_path: Path) -> None:
    rows([0, 1, 2]).with_format("numpy").save_to_disk(str(tmp_path / "data"))
    source = open_source(tmp_path / "data")
    assert source.format == "huggingface"
    pairs = list(source.pairs())
    check_rows(pairs, [0, 1, 2])
    assert pickle.loads(pickle.dumps(pairs)) == pairs


def test_a_saved_dataset_with_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(train=rows([0, 1]), val=rows([2, 1])).save_to_disk(str(tmp_path))
    check_rows(read(tmp_path), [0, 1])
    check_rows(read(tmp_path, split="val"), [2, 1])
    with pytest.raises(ValueError, match="no split 'test'; it has train, val: name one by --split"):
        read(tmp_path, split="test")
    assert open_source(tmp_path).fingerprint() != open_source(tmp_path, split="val").fingerprint()


def test_parquet_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows([0, 1, 2])
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set/data").mkdir(parents=True)
    data.to_parquet(str(tmp_path / "set/data/train-00000-of-00001.parquet"))
    check_rows(read(tmp_path / "set"), [0, 1, 2])
    with pytest.raises(ValueError, match="no split 'val'; it has train: name one by --split"):
        read(tmp_path / "set", split="val")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/val-00000-of-00002-ab.parquet", "val"),
        ("part-00000-of-00001.parquet", "train"),
        ("a_dev[1].parquet", "validation"),
        ("test.parquet", "test"),
        ("latest.parquet", "train"),
    ],
)
def test_the_name_of_a_parquet_file_says_its_split(
    tmp_path: Path, name: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows([0, 1, 2])
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set/data").mkdir(parents=True)
    data.to_parquet(str(tmp_path / "set" / name))
    check_rows(read(tmp_path / "set", split=split), [0, 1, 2])


def test_parquet_that_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library's own words about its columns."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = pyarrow.table({"image": [{"bytes": jpeg(), "path": "a.jpg"}], "caption": ["a cat"]})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set/a.parquet")
    (pair,) = read(tmp_path / "set")
    assert pair.captions == ("a cat",) and pair.photo and pair.photo.read_bytes() == jpeg()


def test_the_readme_of_a_dataset_names_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, private = rows([0, 1, 2]), rows([5, 6])
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    private.to_parquet(str(tmp_path / "private.parquet"))
    data.to_parquet(str(tmp_path / "set/train.parquet"))
    config = f"configs:\n- config_name: default\n  data_files: {tmp_path}/private.parquet\n"
    write(tmp_path / "set/README.md", f"---\n{config}---\n")
    check_rows(read(tmp_path / "set"), [0, 1, 2])


@pytest.mark.parametrize("name", ["../private/data-00000-of-00001.arrow", "/etc/passwd", 7])
def test_a_saved_dataset_names_no_files_elsewhere(tmp_path: Path, name: object) -> None:
    rows([0, 1]).save_to_disk(str(tmp_path / "private"))
    rows([0, 1]).save_to_disk(str(tmp_path / "data"))
    state = json.loads((tmp_path / "data/state.json").read_text())
    write_json(tmp_path / "data/state.json", {**state, "_data_files": [{"filename": name}]})
    with pytest.raises(ValueError, match=r"state\.json: the data file .* is not a plain name"):
        read(tmp_path / "data")


def struct(datasets: Any) -> Any:
    """Columns as `Image` stores them; the library itself would open what they name while it writes them."""
    text = datasets.Value("string")
    return datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": text}, "text": text})


def named(paths: list[str]) -> list[dict]:
    return [{"bytes": None, "path": path} for path in paths]


def test_rows_name_no_photos_elsewhere(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "private.jpg", jpeg())
    paths = [str(tmp_path / "private.jpg"), "../private.jpg", "https://example.org/a.jpg", "zip://a::b", "\0"]
    table = {"image": named(paths), "text": ["a cat"] * len(paths)}
    datasets.Dataset.from_dict(table, features=struct(datasets)).save_to_disk(str(tmp_path / "data"))
    for pair, why in zip(read(tmp_path / "data"), ["leaves", "leaves", "URLs", "No such file", "leaves"], strict=True):
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            assert pair.photo
            pair.photo.read_bytes()


def test_a_bad_row_stops_no_other(tmp_path: Path) -> None:
    pyarrow, datasets = pytest.importorskip("pyarrow"), pytest.importorskip("datasets")
    words = pyarrow.array([b"a cat", b"caf\xe9", b"a dog"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    data = rows([0, 1, 2]).remove_columns("caption").data.table.append_column("caption", words)
    datasets.Dataset(data).save_to_disk(str(tmp_path / "data"))
    first, bad, last = read(tmp_path / "data")
    assert first.captions == ("a cat",) and last.captions == ("a dog",)
    assert bad.name == "row 1" and "cannot be read" in bad.why_bad


def test_a_dataset_may_name_photo_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "data/photos/1.jpg", jpeg())
    table = {"image": [*named(["photos/1.jpg"]), None], "text": ["a cat", None]}
    datasets.Dataset.from_dict(table, features=struct(datasets)).save_to_disk(str(tmp_path / "data"))
    first, second = read(tmp_path / "data")
    assert first.photo and first.photo.read_bytes() == jpeg() and first.captions == ("a cat",)
    assert isinstance(second.photo, Row) and second.captions == ()
    with pytest.raises(FileNotFoundError, match="row 1: has no photo"):
        second.photo.read_bytes()


def test_a_dataset_of_other_columns_shows_them(tmp_path: Path) -> None:
    rows([0, 1]).rename_column("caption", "words").save_to_disk(str(tmp_path / "a"))
    rows([0, 1]).remove_columns("image").save_to_disk(str(tmp_path / "b"))
    with pytest.raises(ValueError, match=r"no captions among 'words', 'url', .*; expected one of captions, caption"):
        read(tmp_path / "a")
    with pytest.raises(ValueError, match=r"0 columns of images among .*url \(Value\)"):
        read(tmp_path / "b")


def test_a_damaged_dataset_and_a_missing_library_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "a/state.json", "{}")
    with pytest.raises(ValueError, match="cannot be opened as a Hugging Face dataset"):
        read(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path / "b/state.json", "{}")
    with pytest.raises(ValueError, match=r'datasets is not installed; pip install "segclip\[train\]"'):
        read(tmp_path / "b")
