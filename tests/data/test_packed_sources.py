"""Sources that hold the photos themselves: img2dataset's tars, and Hugging Face datasets on disk."""

import pickle
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.source_files import Members, captions, jpeg, peak, read, sample, write, write_json, write_tar

from segclip.data.photos import PHOTO_SUFFIXES
from segclip.data.sources.huggingface import Row
from segclip.data.sources.open import open_source
from segclip.data.sources.pairs import Pair
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
    others: Members = [("README", b"no key"), ("._b.txt", b"no key"), ("c.d.txt", b"other field"), ("c.TXT", b"upper")]
    members = sample("a", "a cat") + sample("x/b.c", "a dog") + others + [("a.jpg", jpeg()), ("a.txt", b"again")]
    path = write_tar(tmp_path / "0.tar", members)
    theirs = [s for s in webdataset.WebDataset(str(path), shardshuffle=False) if "._" not in s["__key__"]]
    ours = read(path)
    assert [pair.name.split("/", 1)[1].split(".")[0] for pair in ours] == [s["__key__"] for s in theirs]
    assert captions(ours) == [(s["txt"].decode(),) if "txt" in s else () for s in theirs]
    assert [pair.photo and pair.photo.read_bytes() for pair in ours] == [s.get("jpg") for s in theirs]


def test_a_tar_takes_every_photo_suffix_and_the_caption_of_json(tmp_path: Path) -> None:
    members = [(f"{i}{suffix}", b"photo") for i, suffix in enumerate([*PHOTO_SUFFIXES, ".JPG"])]
    pairs = read(write_tar(tmp_path / "0.tar", [*members, ("x.jpg", b"photo"), ("x.json", b'{"caption": " a cat "}')]))
    assert all(pair.photo for pair in pairs) and len(pairs) == len(PHOTO_SUFFIXES) + 2
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
        ([("a.json", b"{oops")], ".json is broken"),
        ([("a.json", b"[]")], ".json is a list"),
        ([("a.json", b'{"caption": 5}')], "captions 5; expected a text"),
        ([("a.png", b"photo")], "2 photos of one key, a"),
        ([("a.txt", bytes(2_000_000))], "a.txt has 2000000 bytes; at most"),
    ],
)
def test_a_bad_sample_of_a_tar_says_why(tmp_path: Path, members: Members, why: str) -> None:
    path = write_tar(tmp_path / "0.tar", [("a.jpg", jpeg()), *members, *sample("b", "a cat")])
    bad, good = read(path)
    assert why in bad.why_bad and bad.captions == () and bad.name == "0.tar/a.jpg"
    assert good.captions == ("a cat",) and not good.why_bad


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
    with pytest.raises(ValueError, match="cannot be opened as a Hugging Face dataset, split 'val'"):
        read(tmp_path / "set", split="val")


def test_a_dataset_may_name_photo_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file = write(tmp_path / "1.jpg", jpeg())
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = {"image": [{"bytes": None, "path": str(file)}, None], "text": ["a cat", None]}
    data = datasets.Dataset.from_dict(table, features=features)
    data.cast_column("image", datasets.Image(decode=False)).save_to_disk(str(tmp_path / "data"))
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
