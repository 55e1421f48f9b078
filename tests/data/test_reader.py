"""The reader: every sample once, the same batches however it runs, crops that fit, bad samples counted."""

import asyncio
import hashlib
import http.server
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shard_files import FAST, contents, make_shards
from PIL import Image

from segclip.data import reader as reader_module
from segclip.data import remote
from segclip.data import shards as shards_module
from segclip.data.crops import crop_photo, draw_crop
from segclip.data.reader import Batch, Reader, ReaderConfig
from segclip.data.shards import Index, Sample, SampleError, Shards, pack_sample, unpack_sample
from segclip.data.superpixels import crop_superpixels, patch_superpixels
from segclip.utils.failures import Failed

CONFIG = ReaderConfig(batch=6, side=64, patch=16, drop_last=False)
COUNT = 50


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return make_shards(tmp_path_factory.mktemp("reader"), COUNT, replace(FAST, shard_mb=0.02))


@pytest.fixture
def copied(shards: Shards, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    for name, data in contents(shards.folder).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def same(a: Batch, b: Batch) -> bool:
    arrays = torch.equal(a.pixels, b.pixels) and torch.equal(a.superpixels, b.superpixels)
    return arrays and (a.keys, a.captions, a.bad) == (b.keys, b.captions, b.bad)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_once_whatever_the_processes(shards: Shards, world: int, workers: int) -> None:
    assert len(shards.index.shards) > 10  # more than are shuffled together
    readers = [Reader(shards, CONFIG, rank=rank, world=world, workers=workers) for rank in range(world)]
    epochs = [list(reader.epoch(1)) for reader in readers]
    assert all(len(batches) == readers[0].steps == 9 for batches in epochs)
    seen = Counter(key for batches in epochs for batch in batches for key in batch.keys)
    assert seen == Counter(f"{number:09d}" for number in range(COUNT))
    assert all(len(batch.keys) == 6 // world for batches in epochs for batch in batches[:-1])
    alone = list(Reader(shards, CONFIG).epoch(1))
    for step in range(8):  # together they have the batch of one process
        assert [key for batches in epochs for key in batches[step].keys] == alone[step].keys


def test_the_batches_do_not_depend_on_the_workers_and_can_go_on_at_any_step(shards: Shards) -> None:
    alone = list(Reader(shards, CONFIG).epoch(2))
    with_workers = list(Reader(shards, CONFIG, workers=2).epoch(2))
    assert all(map(same, alone, with_workers))
    for start in (1, 4, 8, 9):
        rest = list(Reader(shards, CONFIG).epoch(2, start))
        assert len(rest) == 9 - start and all(map(same, alone[start:], rest))


def test_going_on_reads_nothing_of_what_was(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    real, read = Shards.read, []
    monkeypatch.setattr(Shards, "read", lambda self, *number: read.append(number) or real(self, *number))
    list(Reader(shards, CONFIG).epoch(0, start=7))
    assert len(read) == COUNT - 7 * CONFIG.batch


def test_epochs_and_seeds_differ_in_order_and_crops(shards: Shards) -> None:
    def keys(seed: int, epoch: int) -> list[str]:
        return [key for batch in Reader(shards, replace(CONFIG, seed=seed)).epoch(epoch) for key in batch.keys]

    orders = [keys(0, 0), keys(0, 1), keys(1, 0)]
    assert all(sorted(order) != order for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert keys(0, 0) == orders[0]
    crops = {}
    for epoch in (0, 1):
        for batch in Reader(shards, CONFIG).epoch(epoch):
            for key, pixels in zip(batch.keys, batch.pixels, strict=True):
                crops.setdefault(key, []).append(pixels)
    assert all(not torch.equal(*pair) for pair in crops.values())


def test_drop_last_leaves_the_rest_out(shards: Shards) -> None:
    reader = Reader(shards, replace(CONFIG, drop_last=True))
    batches = list(reader.epoch(0))
    assert len(batches) == reader.steps == COUNT // 6 and all(len(batch.keys) == 6 for batch in batches)


def test_one_caption_drawn_or_each_a_sample(shards: Shards) -> None:
    expected = Counter(
        (sample.key, caption) for sample in map(shards.__getitem__, range(COUNT)) for caption in sample.captions
    )
    every = Reader(shards, replace(CONFIG, captions="all"))
    found = Counter(pair for batch in every.epoch(0) for pair in zip(batch.keys, batch.captions, strict=True))
    assert found == expected and sum(found.values()) == shards.index.captions
    drawn = set()
    for epoch in range(20):
        for batch in Reader(shards, CONFIG).epoch(epoch):
            drawn.update(zip(batch.keys, batch.captions, strict=True))
    assert drawn == set(expected)


@pytest.mark.parametrize("reduction", ["majority", "reference"])
def test_photo_and_superpixels_are_cut_alike(shards: Shards, reduction) -> None:
    reader = Reader(shards, replace(CONFIG, reduction=reduction))
    samples = {sample.key: (sample, number) for number, sample in _numbered(shards)}
    for batch in reader.epoch(3):
        for key, pixels, ids in zip(batch.keys, batch.pixels, batch.superpixels, strict=True):
            sample, number = samples[key]
            photo, whole = sample.photo(), sample.superpixels()
            box = draw_crop(photo.shape[0], photo.shape[1], np.random.default_rng((0, 3, *number, 0)))
            np.testing.assert_array_equal(pixels, crop_photo(photo, box, 64))
            cut = crop_superpixels(whole, (box.top, box.left, box.height, box.width), 64)
            for row in range(4):
                for column in range(4):
                    chunk = cut[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].ravel()
                    majority = np.bincount(chunk).argmax()
                    assert ids[row, column] == (majority if reduction == "majority" else chunk.sum() // 256)


def _numbered(shards: Shards) -> Iterator:
    for shard, info in enumerate(shards.index.shards):
        for number in range(info.samples):
            yield (shard, number), shards.read(shard, number)


def test_superpixels_on_the_fly_are_those_that_would_be_stored(shards: Shards, tmp_path: Path) -> None:
    none = make_shards(tmp_path, COUNT, replace(FAST, shard_mb=0.02, superpixels=None))
    assert none.index.superpixels is None and none[0].superpixels() is None
    config = replace(CONFIG, superpixels="opencv")
    found, stored = ({}, {})
    for keep, source in ((found, none), (stored, shards)):
        for number in range(COUNT):
            sample = source[number]
            keep[sample.key] = sample.photo_file
    assert found == stored
    one = Reader(none, replace(config, batch=COUNT))
    (batch,) = one.epoch(0)
    for key, ids in zip(batch.keys, batch.superpixels, strict=True):
        numbers = {sample.key: (number, sample) for number, sample in _numbered(none)}
        number, sample = numbers[key]
        photo = sample.photo()
        box = draw_crop(photo.shape[0], photo.shape[1], np.random.default_rng((0, 0, *number, 0)))
        whole = shards[int(key)].superpixels()
        assert whole is not None
        cut = crop_superpixels(whole, (box.top, box.left, box.height, box.width), 64)
        np.testing.assert_array_equal(ids, patch_superpixels(cut, 16))


def test_bad_samples_are_counted_and_left_out(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = Shards(copied)
    path, ends = copied / "pairs-000000.tar", shards.table(0)[:, 0]
    data = bytearray(path.read_bytes())
    data[600:800] = bytes(200)  # the header of the first photo
    data[ends[0] : ends[0] + 512] = b"x" * 512  # the tar header of the second sample
    path.write_bytes(data)
    for workers in (0, 2):
        caplog.clear()
        batches = list(Reader(shards, CONFIG, workers=workers).epoch(0))
        bad = [f"{failed.item}: {failed.reason}" for batch in batches for failed in batch.bad]
        assert len(bad) == 2 and sum(len(batch.keys) for batch in batches) == COUNT - 2
        assert any("000000000: " in reason for reason in bad)
        assert any("pairs-000000.tar, sample 1: damaged" in reason for reason in bad)
        assert caplog.text.count("left out") == 2
        assert all(len(batch.pixels) == len(batch.captions) == len(batch.superpixels) for batch in batches)


def test_a_batch_of_bad_samples_only_is_empty(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 1)
    path = shards.folder / "pairs-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    (batch,) = Reader(shards, CONFIG).epoch(0)
    assert batch.pixels.shape == (0, 64, 64, 3) and batch.superpixels.shape == (0, 4, 4) and len(batch.bad) == 1


def test_a_sample_without_what_it_must_have() -> None:
    record = json.dumps({"captions": ["a cat"]}).encode()
    for files, why in (
        ({"json": record}, "no photo in it"),
        ({"jpg": b"x"}, "no captions in it"),
        ({"jpg": b"x", "json": b"{"}, "damaged"),
    ):
        with pytest.raises(SampleError, match=f"sample 3: {why}"):
            unpack_sample(pack_sample("3", files), "sample 3")
    sample = unpack_sample(pack_sample("3", {"jpg": b"x", "json": record, "superpixels.png": b"y"}), "sample 3")
    with pytest.raises(SampleError, match="3: damaged superpixels"):
        sample.superpixels()
    with pytest.raises(SampleError, match="3: not an image"):
        sample.photo()


def test_a_missing_superpixel_member_is_a_bad_sample(shards: Shards, tmp_path: Path) -> None:
    none = make_shards(tmp_path, 3, replace(FAST, superpixels=None))
    said = replace(none.index, superpixels="opencv")
    (none.folder / "index.json").write_text(said.to_json())
    (batch,) = Reader(Shards(none.folder), CONFIG).epoch(0)
    assert len(batch.bad) == 3 and all("no superpixels in it" in failed.reason for failed in batch.bad)


@pytest.fixture
def server(copied: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(copied))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_shards_from_elsewhere(
    shards: Shards, server: str, copied: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    local = list(Reader(shards, CONFIG).epoch(0))
    for address in (server, f"{server}/", copied.as_uri()):
        remote = Reader(Shards(address, cache), CONFIG, workers=2)
        assert all(map(same, local, remote.epoch(0)))
    assert len(list(cache.glob("*/*.tar"))) == 2 * len({shard.sha256 for shard in shards.index.shards})
    assert not list(cache.rglob("*.part"))
    for path in copied.glob("pairs-*"):
        path.unlink()
    assert all(map(same, local, Reader(Shards(server, cache), CONFIG).epoch(0)))  # kept


def test_the_cache_keeps_to_its_size(server: str, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    local = list(Reader(shards, CONFIG).epoch(0))
    remote = Reader(Shards(server, cache, cache_gb=1e-4), CONFIG)
    assert all(map(same, local, remote.epoch(0)))
    assert sum(path.stat().st_size for path in cache.rglob("*")) < 150_000 < sum(s.bytes for s in shards.index.shards)


def test_a_shard_that_is_not_what_the_index_says(
    server: str, copied: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    path = copied / "pairs-000000.tar"
    path.write_bytes(path.read_bytes()[:-512] + b"x" * 512)
    with pytest.raises(ValueError, match=r"pairs-000000\.tar is not the file that index\.json names"):
        Shards(server, cache)[0]
    assert not list(cache.rglob("*.tar")) and not list(cache.rglob("*.part"))
    with pytest.raises(ValueError, match=r"nothing/index\.json: cannot be fetched"):
        Shards(f"{server}/nothing", cache)


def test_a_shard_made_anew_under_its_old_name_is_fetched_anew(
    server: str, copied: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    before = Shards(server, cache)
    assert before[0].captions == ["photo 0, caption 0"]
    tar = copied / "pairs-000000.tar"
    data = tar.read_bytes().replace(b"photo 0, caption 0", b"photo 0, mended 00")
    tar.write_bytes(data)
    index = change_index(before, {"sha256": hashlib.sha256(data).hexdigest()})
    (copied / "index.json").write_text(index)
    assert Shards(server, cache)[0].captions == ["photo 0, mended 00"]
    assert before[0].captions == ["photo 0, caption 0"]  # who has the old index reads the old shard


def test_a_folder_made_anew_is_opened_anew(copied: Path) -> None:
    tar = copied / "pairs-000000.tar"
    before = Shards(copied)
    assert before[0].captions == ["photo 0, caption 0"]
    data = tar.read_bytes().replace(b"photo 0, caption 0", b"photo 0, mended 00")
    tar.unlink()
    tar.write_bytes(data)
    assert Shards(copied)[0].captions == ["photo 0, mended 00"]


def test_files_from_elsewhere_have_no_size_of_their_choice(
    server: str, copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    with (copied / "pairs-000000.npy").open("ab") as file:
        file.write(bytes(10_000))
    with pytest.raises(ValueError, match=r"pairs-000000\.npy: larger than it should be"):
        Shards(server, cache)[0]
    with (copied / "pairs-000001.tar").open("ab") as file:
        file.write(bytes(10_000))
    with pytest.raises(ValueError, match=r"pairs-000001\.tar: larger than it should be"):
        Shards(server, cache).read(1, 0)
    with pytest.raises(ValueError, match=r"the shard pairs-000000 has 0\.0 GB, more than the 1e-05 GB that are kept"):
        Shards(server, cache, cache_gb=1e-5)[0]
    monkeypatch.setattr(shards_module, "MOST_INDEX", 100)
    with pytest.raises(ValueError, match=r"index\.json: larger than it should be"):
        Shards(server, cache)
    assert not list(cache.rglob("*.tar")) and not list(cache.rglob("*.part"))


def test_folders_that_are_no_shards(shards: Shards, copied: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="give a folder that segclip prepare has made and finished"):
        Shards(empty)
    for text, why in (("{", "no index of shards"), ("{}", "version is None"), ("[]", "no index of shards")):
        (empty / "index.json").write_text(text)
        with pytest.raises(ValueError, match=why):
            Shards(empty)
    (empty / "index.json").write_text(replace(shards.index, shards=(), samples=0).to_json())
    with pytest.raises(ValueError, match="the shards hold no sample"):
        Shards(empty)
    tar = copied / "pairs-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"pairs-000001\.tar: has \d+ bytes, not \d+; copy it again"):
        Shards(copied)
    tar.unlink()
    with pytest.raises(ValueError, match=r"pairs-000001\.tar: is missing"):
        Shards(copied)


def change_index(shards: Shards, /, shard: dict | None = None, **fields: Any) -> str:
    """The index with other values in its fields, or in those of its first shard."""
    index = json.loads(shards.index.to_json())
    index["shards"][0].update(shard or {})
    return json.dumps({**index, **fields})


@pytest.mark.parametrize(
    "name", ["../pairs", "/etc/pairs", ".hidden", "a\\b", "C:pairs", "", "a b", "a;b", "$(a)", 7, None]
)
def test_an_index_names_no_file_elsewhere(shards: Shards, name: object) -> None:
    with pytest.raises(ValueError, match=r"index\.json: no index of shards .*not a plain file name"):
        Index.from_json(change_index(shards, {"file": name}), "index.json")


@pytest.mark.parametrize("wrong", [None, "1", 1.5, True, -1, 1 << 70, [], {}, float("nan")])
def test_every_count_of_an_index_is_checked(shards: Shards, wrong: Any) -> None:
    for field in ("samples", "captions", "bytes"):
        with pytest.raises(ValueError, match=f"{field} .*; expected a count"):
            Index.from_json(change_index(shards, {field: wrong}), "index.json")
    for field in ("samples", "captions", "side", "seen", "duplicates"):
        with pytest.raises(ValueError, match=f"{field} .*; expected a count"):
            Index.from_json(change_index(shards, **{field: wrong}), "index.json")
    with pytest.raises(ValueError, match=r"tiny .*; expected a count"):
        Index.from_json(change_index(shards, left_out={"tiny": wrong}), "index.json")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shard": {"sha256": "../x"}}, "the sha256 '../x' of pairs-000000; expected 64"),
        ({"shard": {"sha256": None}}, "the sha256 None"),
        ({"shard": {"more": 1}}, "unexpected keyword argument 'more'"),
        ({"shards": {"a": 1}}, "no index of shards"),
        ({"shards": None}, "no index of shards"),
        ({"left_out": [1]}, "no index of shards"),
        ({"superpixels": "sklearn"}, "superpixels 'sklearn'; expected"),
        ({"superpixels": []}, r"superpixels \[\]; expected"),
        ({"made_from": 1}, "made_from 1"),
        ({"samples": 1}, "its shards do not have 1 samples"),
        ({"version": "1" * 5000}, r"its version is '1{40,60}\.\.\."),
    ],
)
def test_every_field_of_an_index_is_checked(shards: Shards, change: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Index.from_json(change_index(shards, **change), "index.json")
    with pytest.raises(ValueError, match="no index of shards"):
        Index.from_json('{"version": ' + "[" * 100_000, "index.json")


@pytest.mark.parametrize("kind", ["other type", "other shape", "before its begin", "of another tar", "pickle", "large"])
def test_a_table_that_does_not_fit_its_tar(copied: Path, kind: str) -> None:
    path = copied / "pairs-000000.npy"
    table = np.load(path)
    match kind:
        case "other type":
            np.save(path, table.astype(float))
        case "other shape":
            np.save(path, table[:, :1])
        case "before its begin":
            np.save(path, table[::-1])
        case "of another tar":
            np.save(path, table + np.array([512, 0]))
        case "pickle":
            np.save(path, np.array([[print, 0]] * len(table)), allow_pickle=True)
        case "large":  # of which only the header is there
            header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({10**15}, 2)}}".ljust(117) + "\n"
            path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.encode())
    with pytest.raises(ValueError, match=r"pairs-000000\.npy: damaged \("):
        Shards(copied)[0]


def test_samples_that_hang_or_are_of_other_types(shards: Shards) -> None:
    data = bytearray(pack_sample("3", {"jpg": b"x", "json": b"{}"}))
    data[124:136] = b"\xff" * 11 + b"\x00"  # a size below zero would lead back to this member for ever
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    deep = b'{"captions": ' + b"[" * 100_000
    for files in (data, pack_sample("3", {"jpg": b"x", "json": deep})):
        with pytest.raises(SampleError, match=r"sample 3: damaged"):
            unpack_sample(bytes(files), "sample 3")
    with pytest.raises(SampleError, match="sample 3: no captions in it"):
        unpack_sample(pack_sample("3", {"jpg": b"x", "json": b'{"captions": [7]}'}), "sample 3")


def test_a_sample_that_cannot_be_cut_stops_no_other(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library raises for its photo."""
    real = reader_module.cut_sample

    def cut(sample: Sample, *others: Any) -> Any:
        if sample.key == "000000007":
            raise ZeroDivisionError("odd photo")
        return real(sample, *others)

    monkeypatch.setattr(reader_module, "cut_sample", cut)
    batches = list(Reader(shards, CONFIG).epoch(0))
    assert sum(len(batch.keys) for batch in batches) == COUNT - 1
    assert [failed for batch in batches for failed in batch.bad] == [
        Failed("000000007", "cannot be used (ZeroDivisionError: odd photo)")
    ]


def test_addresses_that_nothing_opens() -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:1/shards/index\.json: cannot be fetched"):
        Shards("http://127.0.0.1:1/shards")
    for address in ("nonsense://bucket", "pipe:touch x://a", "ssh://host/a", "simplecache::http://host/a"):
        with pytest.raises(ValueError, match=f"{address}/index.json: no address that shards .* begins with https://"):
            Shards(address)


def test_https_stays_https() -> None:
    def follow(url: str, target: str) -> None:
        response = SimpleNamespace(headers={"Location": target})
        redirect = SimpleNamespace(url=SimpleNamespace(scheme=url.partition(":")[0]), response=response)
        asyncio.run(remote._stay_encrypted(None, None, redirect))

    follow("https://a", "https://b")
    follow("https://a", "/b")
    follow("http://a", "http://b")
    with pytest.raises(ValueError, match="redirects from https to HTTP://b"):
        follow("https://a", "HTTP://b")


def test_a_redirect_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        do_HEAD = do_GET

    async def refuse(*_: object) -> None:
        raise ValueError("refused")

    monkeypatch.setattr(remote, "_stay_encrypted", refuse)
    remote._trace.cache_clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match=r"cannot be fetched \(refused\)"):
            Shards(f"http://127.0.0.1:{served.server_port}")
        served.shutdown()
    remote._trace.cache_clear()


def test_reading_where_pread_is_missing(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    photos = [shards[number].photo_file for number in range(len(shards))]
    monkeypatch.delattr(os, "pread")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: shards[number].photo_file, range(len(shards)))) == photos


def test_an_index_survives_its_json(shards: Shards) -> None:
    assert Index.from_json(shards.index.to_json(), "x") == shards.index


def test_readers_that_cannot_be(shards: Shards) -> None:
    with pytest.raises(ValueError, match="50 photos are less than one batch of 64; lower the batch"):
        Reader(shards, ReaderConfig(batch=64))
    with pytest.raises(ValueError, match="batch 6 does not divide among 4 processes"):
        Reader(shards, CONFIG, world=4)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Reader(shards, CONFIG, rank=2, world=2)
    with pytest.raises(ValueError, match="batch 0"):
        ReaderConfig(batch=0)
    with pytest.raises(ValueError, match="side 100 of the crops is not a multiple of the patch 16"):
        ReaderConfig(batch=1, side=100)


def test_photos_turned_by_exif_fit_their_superpixels(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 1)
    source = tmp_path / "turned"
    source.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "source" / "0.jpg") as image:
        image.save(source / "0.jpg", exif=exif)
    (source / "pairs.jsonl").write_text('{"image": "0.jpg", "captions": ["a cat"]}')
    from helpers.shard_files import map_serially

    from segclip.data.prepare import prepare
    from segclip.data.sources.open import open_source

    prepare(open_source(source), tmp_path / "out", FAST, map_chunks=map_serially)
    turned, upright = Shards(tmp_path / "out")[0], shards[0]
    assert turned.photo().shape == (upright.photo().shape[1], upright.photo().shape[0], 3)
    ids = turned.superpixels()
    assert ids is not None and ids.shape == turned.photo().shape[:2]
