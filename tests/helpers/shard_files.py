"""Small sources and their shards, for the tests of preparing, reading and training."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from segclip.data.prepare import Chunk, Settings, Work, prepare
from segclip.data.shard_writer import Packed
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source

FAST = Settings(superpixels="opencv")


def make_source(folder: Path, count: int, extra: Iterable[dict] = ()) -> Path:
    """`count` pieces of real photos, with one to three captions, as pairs.jsonl; `extra` are further lines."""
    folder.mkdir(parents=True)
    photos = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    generator = np.random.default_rng(0)
    lines = []
    for number in range(count):
        photo = photos[number % 3]
        top, left = (int(generator.integers(size - 100)) for size in photo.shape[:2])
        Image.fromarray(photo[top : top + 80 + number % 20, left : left + 100]).save(folder / f"{number}.jpg")
        captions = [f"photo {number}, caption {i}" for i in range(1 + number % 3)]
        lines.append({"image": f"{number}.jpg", "captions": captions, "kind": "test"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*lines, *extra])))
    return folder


def map_serially(work: Work, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Packed]]]:
    """The work without processes, where a test is not about them."""
    for chunk in chunks:
        yield chunk, work(chunk)


def make_shards(folder: Path, count: int, settings: Settings = FAST, extra: Iterable[dict] = ()) -> Shards:
    prepare(
        open_source(make_source(folder / "source", count, extra)), folder / "shards", settings, map_chunks=map_serially
    )
    return Shards(folder / "shards")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}
