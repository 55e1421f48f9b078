"""Preparing and reading training data: memory, and speed relative to the libraries underneath.

    python benchmarks/prepare.py [SOURCE]

SOURCE is anything that `segclip prepare` takes, such as a folder with pairs.jsonl; without it, photos are crops of
scikit-image's samples. Every measurement uses two processes.
"""

import io
import json
import multiprocessing
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from rich.console import Console
from rich.table import Table

from segclip.data.crops import crop_image, draw_crop
from segclip.data.photos import decode_photo
from segclip.data.prepare import Settings, map_locally, prepare
from segclip.data.reader import Reader, ReaderConfig
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source
from segclip.data.superpixels import Method, crop_superpixels, find_superpixels, patch_superpixels

CORES = 2
PHOTOS = 800  # of the source to use
CAPTIONS = 5  # of each photo, to make an epoch long
METHODS: tuple[Method, ...] = ("scikit-image", "opencv")


def main() -> None:
    table = Table("what", "value", title=f"{CORES} processes")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        source = made / "some"
        copy_some(Path(sys.argv[1]) if len(sys.argv) > 1 else make_photos(made / "made", PHOTOS), source)
        for row in chain(superpixel_rows(source), prepare_rows(source, made), reader_rows(made), memory_rows(made)):
            table.add_row(*row)
            print(": ".join(row), flush=True)
    Console().print(table)


def superpixel_rows(source: Path) -> Iterator[tuple[str, str]]:
    """Time of the two methods, and how well they agree."""
    photos = [decode_photo(data, "photo") for data in islice(photo_files(source), 60)]
    found, times = [], []
    for method in METHODS:
        with clock(times):
            found.append([find_superpixels(photo, method) for photo in photos])
        yield f"superpixels, {method}", f"{times[-1] / len(photos) * 1e3:.1f} ms per photo in one process"
        yield f"superpixels per photo, {method}", f"{np.mean([ids.max() + 1 for ids in found[-1]]):.1f}"
    overlap = np.mean([best_overlap(a, b) for a, b in zip(*found, strict=True)])
    patches = np.mean([same_neighbours(a, b) for a, b in zip(*found, strict=True)])
    yield "agreement: IoU of a pixel's superpixels by the two methods", f"{overlap:.3f}"
    yield "neighbouring patches that both join, or both separate", f"{patches:.1%}"


def best_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of each pixel's superpixels in `a` and `b`, averaged over pixels."""
    size_a, size_b = np.bincount(a.ravel()), np.bincount(b.ravel())
    both = np.zeros((len(size_a), len(size_b)))
    np.add.at(both, (a.ravel(), b.ravel()), 1)
    return float((both * both / (size_a[:, None] + size_b - both)).sum() / a.size)


def same_neighbours(a: np.ndarray, b: np.ndarray) -> float:
    grids = []
    for ids in (a, b):
        side = min(ids.shape)
        grid = patch_superpixels(crop_superpixels(ids, (0, 0, side, side), 224), 16)
        grids.append(np.concatenate([(grid[1:] == grid[:-1]).ravel(), (grid[:, 1:] == grid[:, :-1]).ravel()]))
    return float((grids[0] == grids[1]).mean())


def prepare_rows(source: Path, made: Path) -> Iterator[tuple[str, str]]:
    """`segclip prepare` relative to its superpixel library alone, alternating, three times."""
    files = list(photo_files(source))
    for method in METHODS:
        ratios, rates = [], []
        for attempt in range(3):
            photos = [decode_photo(data, "photo") for data in files]
            alone = rate(partial(find_superpixels, method=method), photos)
            out = made / f"{method}-{attempt}"
            seen: list[tuple[float, int]] = []
            prepare(
                open_source(source),
                out,
                Settings(superpixels=method),
                map_chunks=partial(map_locally, workers=CORES),
                watch=lambda _, count, seen=seen: seen.append((time.perf_counter(), count)),
            )
            (start, first), (end, last) = seen[0], seen[-1]
            rates.append((last - first) / (end - start))
            ratios.append(rates[-1] / alone)
        size = sum(shard.bytes for shard in Shards(out).index.shards) / len(files)
        yield f"prepare, {method}", f"{np.median(rates):.0f} photos/s, {size / 1e3:.1f} kB per photo"
        yield f"prepare relative to {method} alone, photos/s", f"{np.median(ratios):.2f}"


def rate(work: Callable, items: Sequence) -> float:
    """Items per second, in CORES processes."""
    return len(items) / seconds_of(partial(do_all, work), [items[i::CORES] for i in range(CORES)])


def seconds_of(work: Callable, shares: Sequence) -> float:
    """Seconds that CORES warmed-up processes take for one share each."""
    with multiprocessing.get_context("fork").Pool(CORES, worker_warm) as pool:
        pool.map(abs, range(CORES), chunksize=1)
        start = time.perf_counter()
        pool.map(work, shares, chunksize=1)
        return time.perf_counter() - start


def worker_warm() -> None:
    find_superpixels(skimage.data.chelsea(), "scikit-image")  # imports


def do_all(work: Callable, items: Sequence) -> None:
    for item in items:
        work(item)


def reader_rows(made: Path) -> Iterator[tuple[str, str]]:
    """The reader relative to Pillow alone on the same shard, alternating; and the time of its steps."""
    shards = Shards(made / "opencv-0")
    (path,) = (made / "opencv-0").glob("*.tar")
    with tarfile.open(path) as tar:
        members = tar.getmembers()  # three per sample: photo, captions, superpixels
    pairs = list(zip(members[0::3], members[2::3], strict=True)) * CAPTIONS
    files = [(path, pairs[i::CORES]) for i in range(CORES)]
    reader = Reader(shards, ReaderConfig(batch=64, captions="all"), workers=CORES)
    ratios, rates = [], []
    for attempt in range(5):
        batches = reader.epoch(attempt)
        next(batches)  # the workers are up
        start = time.perf_counter()
        read = sum(len(batch.keys) for batch in batches)
        rates.append(read / (time.perf_counter() - start))
        ratios.append(rates[-1] / (len(pairs) / seconds_of(decode_shard, files)))
    yield "reader", f"{np.median(rates):.0f} samples/s"
    yield "reader relative to Pillow decoding and cropping, samples/s", f"{np.median(ratios):.2f}"
    yield from reader_profile(shards)


def decode_shard(work: tuple[Path, list[tuple[tarfile.TarInfo, tarfile.TarInfo]]]) -> None:
    path, pairs = work
    with tarfile.open(path) as tar:
        for photo, superpixels in pairs:
            decode_and_crop(*(read_member(tar, member) for member in (photo, superpixels)))


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def decode_and_crop(photo_file: bytes, superpixel_file: bytes) -> None:
    """What every reader has to do: decode photo and superpixels, crop them, scale them to 224 px."""
    generator = np.random.default_rng(0)
    with Image.open(io.BytesIO(photo_file)) as photo, Image.open(io.BytesIO(superpixel_file)) as ids:
        box = draw_crop(photo.height, photo.width, generator)
        cut = (box.left, box.top, box.left + box.width, box.top + box.height)
        np.asarray(photo.convert("RGB").crop(cut).resize((224, 224), Image.Resampling.BICUBIC))
        np.asarray(ids.crop(cut).resize((224, 224), Image.Resampling.NEAREST))


def reader_profile(shards: Shards) -> Iterator[tuple[str, str]]:
    """Milliseconds per sample for each step of the reader, in one process."""
    samples = [shards[number] for number in range(len(shards))]
    photos, ids = [s.image() for s in samples], [np.asarray(s.superpixels()) for s in samples]
    boxes = [draw_crop(photo.height, photo.width, np.random.default_rng(0)) for photo in photos]
    corners = [(box.top, box.left, box.height, box.width) for box in boxes]
    cuts = [crop_superpixels(one, corner, 224) for one, corner in zip(ids, corners, strict=True)]
    numbers = range(len(samples))
    parts: dict[str, Callable[[int], object]] = {
        "read the sample": lambda i: shards[i],
        "decode the photo": lambda i: samples[i].image(),
        "decode the superpixels": lambda i: samples[i].superpixels(),
        "draw the crop": lambda i: draw_crop(200, 300, np.random.default_rng((0, i))),
        "crop and scale the photo": lambda i: crop_image(photos[i], boxes[i], 224),
        "crop and scale the superpixels": lambda i: crop_superpixels(ids[i], corners[i], 224),
        "superpixels to patches": lambda i: patch_superpixels(cuts[i], 16),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(5):
        for name, part in parts.items():
            with clock(times[name]):
                do_all(part, numbers)
    text = ", ".join(f"{name} {min(found) / len(samples) * 1e3:.2f}" for name, found in times.items())
    yield "reader, ms per sample", text


def memory_rows(made: Path) -> Iterator[tuple[str, str]]:
    """Peak memory of preparing and reading small photos, each in a separate process."""
    for count in (1_000, 20_000):
        source = make_photos(made / f"small-{count}", count, side=96)
        command = [sys.executable, __file__, "--memory", str(source), str(made / f"out-{count}")]
        wrote, read = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        yield f"peak memory at {count:,} samples", f"{wrote} MB preparing, {read} MB after reading an epoch"


def peak_memory(source: Path, out: Path) -> None:
    prepare(
        open_source(source), out, Settings(superpixels=None, shard_mb=4), map_chunks=partial(map_locally, workers=1)
    )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    reader = Reader(Shards(out), ReaderConfig(batch=20, superpixels="opencv"))
    for _ in reader.epoch(0):
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


@contextmanager
def clock(times: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times.append(time.perf_counter() - start)


def photo_files(source: Path) -> Iterator[bytes]:
    for pair in open_source(source).pairs():
        if pair.photo is not None:
            yield pair.photo.read_bytes()


def copy_some(source: Path, folder: Path) -> None:
    """PHOTOS photos of a source, evenly spread, as they will be stored, so that only the work itself is compared."""
    folder.mkdir()
    photos = [pair.photo for pair in open_source(source).pairs() if pair.photo is not None and pair.captions]
    lines = []
    for number, photo in enumerate(photos[:: max(1, len(photos) // PHOTOS)][:PHOTOS]):
        (folder / f"{number}.jpg").write_bytes(photo.read_bytes())
        lines.append(json.dumps({"image": f"{number}.jpg", "captions": ["a photo"] * CAPTIONS}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))


def make_photos(folder: Path, count: int, side: int = 0) -> Path:
    """Random crops of scikit-image's samples, short side 224, or squares of `side`."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    photos = [Image.fromarray(load()) for load in (skimage.data.chelsea, skimage.data.coffee, skimage.data.rocket)]
    with (folder / "pairs.jsonl").open("w") as lines:
        for number in range(count):
            photo = photos[number % 3]
            width, height = (side, side) if side else (300, 224)
            left, top = (int(generator.integers(n - m)) for n, m in zip(photo.size, (width, height), strict=True))
            photo.crop((left, top, left + width, top + height)).save(folder / f"{number}.jpg")
            lines.write(json.dumps({"image": f"{number}.jpg", "captions": ["a photo"]}) + "\n")
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        peak_memory(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
