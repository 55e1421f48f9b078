"""`segclip prepare`: photos and captions of any source into shards; killed at any moment, it goes on where it was.

Photos are packed in chunks, by worker processes; the chunks are appended to the open shard in their order, so that
the bytes do not depend on the number of workers. What is done is kept in `progress.sqlite` beside the open shard until
all is whole.
"""

import hashlib
import io
import json
import logging
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np
from PIL import Image

from segclip.data.photos import Photo, PhotoError, decode_photo, photo_suffix
from segclip.data.shard_writer import Packed, ShardWriter, whole_progress
from segclip.data.shards import INDEX, SUPERPIXELS, Index, pack_sample
from segclip.data.sources.open import Source
from segclip.data.sources.pairs import Pair, PhotoFile, read_file
from segclip.data.superpixels import Method, find_superpixels
from segclip.utils.batches import batched
from segclip.utils.files import no_space
from segclip.utils.locks import only_one_run
from segclip.utils.ray import map_over_ray

log = logging.getLogger(__name__)
CHUNK = 8  # photos that a worker packs at once
SEEN = 1000  # photos after which too large a share of bad ones stops the run
SMALLEST = 64  # short side, in pixels, of a photo worth training on
NAME = re.compile(r"[\w-]{1,100}")
QUALITY = 90  # of JPEG, for photos that are scaled down
CHUNKS_AHEAD = 2**14  # that a cluster gets at once
MOST_SUPERPIXELS = 2**16  # which a 16-bit PNG can number


@dataclass(frozen=True)
class Settings:
    """What the bytes of the shards depend on, besides the source.

    Attributes:
        name: of the shards: NAME-000000.tar.
        side: short side, in pixels, that larger photos are scaled down to; smaller ones are stored as they are.
        shard_mb: size that a shard does not exceed, in millions of bytes.
        superpixels: how they are found; None: none are stored.
    """

    name: str = "pairs"
    side: int = 256
    shard_mb: float = 256.0
    superpixels: Method | None = "scikit-image"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):  # an index from elsewhere may name no others
            raise ValueError(f"name {self.name!r} of the shards: give letters, digits, - or _, at most 100")
        if self.side < SMALLEST:
            raise ValueError(f"side {self.side}: photos of a short side under {SMALLEST} px are of no use; give 256")
        if not self.shard_mb > 0:
            raise ValueError(f"shards of {self.shard_mb} MB; give a size above 0, such as 256")


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs of a source, the first of them its pair `start`."""

    start: int
    pairs: tuple[Pair, ...]


Work = Callable[[Chunk], list[Packed]]
MapChunks = Callable[[Work, Iterable[Chunk]], Iterator[tuple[Chunk, list[Packed]]]]


def prepare(
    source: Source,
    out: Path,
    settings: Settings | None = None,
    *,
    max_bad: float = 0.05,
    map_chunks: MapChunks | None = None,
    watch: Callable[[float, int], None] | None = None,
) -> Index:
    """Write the shards of a source, or go on with a run that was broken; a folder that is whole stays as it is.

    Args:
        source: as `open_source` gives it.
        out: folder to write to; made if missing. `report.jsonl` there lists what was left out, and duplicates.
        settings: the defaults if None.
        max_bad: share of left-out photos above which the run stops; it can go on with a larger one.
        map_chunks: runs the work; None: `map_locally` on all cores.
        watch: called after every chunk with the share (0-1) of the source that was read and the photos that were seen.

    Returns:
        The index, as written to `index.json`.

    Raises:
        ValueError: too many bad photos; a folder with shards of another source or settings, or that another run is
            writing to; a source that cannot be read; a full disk; a damaged progress file.
    """
    settings = settings or Settings()
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max-bad {max_bad}; give a share in 0..1, such as 0.05")
    made_from = hashlib.sha256(f"{source.fingerprint()} {asdict(settings)}".encode()).hexdigest()
    if (out / INDEX).exists():
        index = Index.from_json((out / INDEX).read_bytes(), f"{out}: {INDEX}")
        if index.made_from != made_from:
            raise ValueError(
                f"{out}: holds the shards of another source or other settings, or its photos changed since; give "
                "another folder, or delete this one"
            )
        return index
    limit = round(settings.shard_mb * 1e6)
    with (
        only_one_run(out),
        no_space(out),
        whole_progress(out),
        ShardWriter(out, settings.name, limit, made_from) as writer,
    ):
        chunks = islice(cut_chunks(source.pairs()), -(-writer.seen // CHUNK), None)
        for chunk, packed in (map_chunks or map_locally)(partial(pack_chunk, settings=settings), chunks):
            writer.add(packed)
            if watch:
                watch(chunk.pairs[-1].read, writer.seen)
            if writer.seen >= SEEN:
                _check_bad(writer, max_bad)
        _check_bad(writer, max_bad)
        return writer.finish(settings.superpixels, settings.side)


def cut_chunks(pairs: Iterable[Pair]) -> Iterator[Chunk]:
    """Cut a stream of pairs into chunks."""
    for number, some in enumerate(batched(pairs, CHUNK)):
        yield Chunk(number * CHUNK, some)


def map_locally(
    work: Work, chunks: Iterable[Chunk], workers: int | None = None
) -> Iterator[tuple[Chunk, list[Packed]]]:
    """Do the work of the chunks in processes of this machine; results come in the chunks' order.

    A photo that ends the process that reads it, as a fault in a decoder does, is left out, and named.

    Raises:
        ValueError: processes are killed whatever they read.
    """
    workers, left, more = workers or os.cpu_count() or 1, iter(chunks), True
    while more:
        waiting: deque[tuple[Chunk, Future[list[Packed]] | None]] = deque()
        with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
            try:
                for chunk in left:
                    waiting.append((chunk, None))
                    waiting[-1] = chunk, pool.submit(work, chunk)
                    if len(waiting) > 2 * workers:
                        yield from _first_done(waiting)
                while waiting:
                    yield from _first_done(waiting)
                more = False
            except BrokenProcessPool:
                log.warning("a worker process was killed; what it was at is done again, each by itself")
            finally:
                pool.shutdown(cancel_futures=True)
        for chunk, _ in waiting:  # one of them ended a process, and with it the others
            yield chunk, _pack_alone(work, chunk)


def _first_done(waiting: "deque[tuple[Chunk, Future[list[Packed]] | None]]") -> Iterator[tuple[Chunk, list[Packed]]]:
    """The first of them, which is taken away once it is done. Raises BrokenProcessPool."""
    chunk, future = waiting[0]
    assert future
    packed = future.result()
    waiting.popleft()
    yield chunk, packed


def _pack_alone(work: Work, chunk: Chunk) -> list[Packed]:
    """What a chunk gives in a process of its own; where that is killed, each of its pairs in one."""
    if (packed := _in_new_process(work, chunk)) is not None:
        return packed
    found: list[Packed] = []
    for i, pair in enumerate(chunk.pairs):
        alone = _in_new_process(work, Chunk(chunk.start + i, (pair,)))
        found += alone or [Packed(pair.name, kind="corrupt", why="reading it ended the process; its file is damaged")]
    if len(found) > 1 and all(one.kind == "corrupt" and one.why.startswith("reading it ended") for one in found):
        raise ValueError(
            "worker processes are killed one after the other, perhaps for want of memory; what is done is kept: give "
            "the same command again, with fewer --workers"
        )
    return found


def _in_new_process(work: Work, chunk: Chunk) -> list[Packed] | None:
    """The work in a process that is gone after it; None where it was killed."""
    with ProcessPoolExecutor(1, get_context("spawn"), _start_worker) as pool:
        try:
            return pool.submit(work, chunk).result()
        except BrokenProcessPool:
            return None


def map_over_cluster(work: Work, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Packed]]]:
    """Do the work of the chunks over a Ray cluster, see `map_over_ray`; results come in the chunks' order."""
    return map_over_ray(partial(_work_on_each, work), chunks, batch=1, ahead=CHUNKS_AHEAD)


def pack_chunk(chunk: Chunk, settings: Settings) -> list[Packed]:
    """Read, check and pack the pairs of a chunk; what cannot be used is left out, with its reason."""
    return [_pack(pair, f"{chunk.start + i:09d}", settings) for i, pair in enumerate(chunk.pairs)]


def _work_on_each(work: Work) -> Callable[[Sequence[Chunk]], list[tuple[Chunk, list[Packed]]]]:
    return lambda chunks: [(chunk, work(chunk)) for chunk in chunks]


def _start_worker() -> None:
    """Die with the parent: a killed run must not leave processes behind; Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pack(pair: Pair, key: str, settings: Settings) -> Packed:
    if pair.why_bad:
        return Packed(pair.name, kind="corrupt", why=pair.why_bad)
    if pair.photo is None:
        return Packed(pair.name, kind="missing", why="no photo for these captions")
    if not pair.captions:
        return Packed(pair.name, kind="captionless", why="no caption")
    try:
        return _pack_photo(pair, pair.photo, key, settings)
    except FileNotFoundError:
        return Packed(pair.name, kind="missing", why="no such file")
    except PhotoError as error:
        return Packed(pair.name, kind="corrupt", why=str(error).removeprefix(f"{pair.name}: "))
    except OSError as error:
        return Packed(pair.name, kind="corrupt", why=f"cannot be read ({error.strerror or error})")
    except Exception as error:  # of a library, for data that it did not expect: this photo is bad, no other is
        return Packed(pair.name, kind="corrupt", why=f"cannot be used ({type(error).__name__}: {error})")


def _pack_photo(pair: Pair, file: PhotoFile, key: str, settings: Settings) -> Packed:
    data = read_file(file) if isinstance(file, Path) else file.read_bytes()
    photo = decode_photo(data, pair.name)
    if min(photo.shape[:2]) < SMALLEST:
        size = f"{photo.shape[1]}x{photo.shape[0]}"
        return Packed(pair.name, kind="tiny", why=f"{size} px; the short side must have {SMALLEST}")
    packed = pack_sample(key, _files(data, photo, pair, settings))
    return Packed(pair.name, packed, len(pair.captions), hashlib.blake2b(data, digest_size=16).digest())


def _files(data: bytes, photo: Photo, pair: Pair, settings: Settings) -> dict[str, bytes]:
    """The members of a sample; superpixels are those of the photo as stored."""
    if min(photo.shape[:2]) > settings.side:
        suffix, data = "jpg", _scaled_down(photo, settings.side)
        photo = decode_photo(data, pair.name)
    else:
        suffix = photo_suffix(data, pair.name)
    record = {"captions": pair.captions, "photo": pair.name, **({"meta": pair.meta} if pair.meta else {})}
    files = {suffix: data, "json": json.dumps(record, ensure_ascii=False).encode()}
    if settings.superpixels:
        ids = find_superpixels(photo, settings.superpixels)
        if ids.max() >= MOST_SUPERPIXELS:
            raise PhotoError(f"more than {MOST_SUPERPIXELS} superpixels; cut the photo into smaller ones")
        files[SUPERPIXELS] = _encoded(Image.fromarray(ids.astype(np.uint16)), "PNG")
    return files


def _scaled_down(photo: Photo, side: int) -> bytes:
    height, width = photo.shape[:2]
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    return _encoded(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS), "JPEG", quality=QUALITY)


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _check_bad(writer: ShardWriter, max_bad: float) -> None:
    bad = writer.left_out()
    count = sum(bad.values())
    if count <= max_bad * writer.seen and count < writer.seen:
        return
    report = writer.write_report()
    kinds = ", ".join(f"{number} {kind}" for kind, number in bad.items())
    raise ValueError(
        f"{count} of {writer.seen} photos cannot be used ({kinds}), more than the share {max_bad:g} that --max-bad "
        f"allows. The first: {writer.first_left_out()}. All are in {report}. Mend the source and give another folder, "
        "or give the same command with a larger --max-bad to go on without them"
    )
