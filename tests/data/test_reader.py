"""The reader: every sample once, the same batches however it runs, crops that fit, bad samples counted."""

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

import numpy as np
import pytest
import torch
from helpers.shard_files import FAST, contents, make_shards
from PIL import Image

from segclip.data.crops import crop_photo, draw_crop
from segclip.data.reader import Batch, Reader, ReaderConfig
from segclip.data.shards import Index, SampleError, Shards, pack_sample, unpack_sample
from segclip.data.superpixels import crop_superpixels, patch_superpixels

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
    assert len(list(cache.glob("*/*.tar"))) == 2 * len(shards.index.shards)
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


@pytest.mark.parametrize("name", ["../pairs", "/etc/pairs", ".hidden", "a\\b", "C:pairs", ""])
def test_an_index_names_no_file_elsewhere(shards: Shards, name: str) -> None:
    index = replace(shards.index, shards=(replace(shards.index.shards[0], file=name),))
    with pytest.raises(ValueError, match="not a plain file name"):
        Index.from_json(index.to_json(), "index.json")


def test_addresses_that_nothing_opens() -> None:
    for address in ("nonsense://bucket/shards", "http://127.0.0.1:1/shards"):
        with pytest.raises(ValueError, match=f"{address}/index.json: cannot be fetched"):
            Shards(address)


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
