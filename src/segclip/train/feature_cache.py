"""What frozen towers give for a few fixed crops of each photo, computed once and kept on disk.

The cache is a folder of chunks of photos, each a folder of .npy files that gets its name when it is written: what is
there is whole, and a run that was broken goes on with the chunks that are missing. The masked pass sees some of the
photos, with a fixed mask each. The trunk runs in bfloat16, which halves the time.
Axes: N photos, M of them that the masked branch sees, P patches, V visible patches, D width.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from segclip.checkpoints.variants import load_to_train
from segclip.config import ModelConfig
from segclip.data.reader import ReaderConfig, cut_sample
from segclip.data.shards import SampleError, Shards
from segclip.data.superpixels import Reduction
from segclip.model.reconstruction import visible_count
from segclip.model.segclip import SegCLIP
from segclip.train.config import CacheConfig, TrainConfig
from segclip.utils.files import atomic, sync_folder

SUMS = "crc32.json"  # of a chunk's files
PHOTOS = 64  # in a chunk
MAX_BAD = 0.05  # share of unreadable photos past which the data must be mended
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSettings:
    """What features depend on, besides the towers and the photos.

    Attributes:
        reduction: of superpixels to patches, see `segclip.data.superpixels.patch_superpixels`.
        crop_scale: smallest and largest share of a photo's area that a crop takes.
        mask_ratio: share of the patches that the masked branch does not see.
        masked_photos: share of the photos that the masked branch sees at all.
        seed: of the crops, the masks and the order of the photos.
    """

    reduction: Reduction = TrainConfig.reduction
    crop_scale: tuple[float, float] = TrainConfig.crop_scale
    mask_ratio: float = ModelConfig.mask_ratio
    masked_photos: float = CacheConfig.reconstruction_fraction
    seed: int = CacheConfig.seed


@dataclass(frozen=True)
class FeatureChunk:
    """Cached arrays of one crop of some photos.

    Attributes:
        rows: (N,) which sample of the shards each photo is.
        patches: (N,P,D) float16, the trunk's features.
        superpixels: (N,rows,columns) int32.
        pixels: (M,S,S,3) uint8, the crops of the first M photos.
        visible: (M,V,D) float16, the trunk's features of their visible patches.
        mask: (M,P) float32; the patches with the smallest values are the visible ones, ascending.
    """

    rows: np.ndarray
    patches: np.ndarray
    superpixels: np.ndarray
    pixels: np.ndarray
    visible: np.ndarray
    mask: np.ndarray


def cache_features(
    towers: str, shards: Shards, folder: Path, settings: FeatureSettings, *, crops: int = 1
) -> list[list[FeatureChunk]]:
    """Compute what is missing in `folder`, over all cores, and open it memory-mapped.

    Args:
        towers: the model whose trunk is used, as `segclip.load` takes it.
        shards: the photos.
        folder: the cache; it belongs to these towers, shards and settings. More crops can be added later.
        settings: what the features depend on.
        crops: how many of each photo.

    Returns:
        For each crop, the chunks of all photos, in the same order.

    Raises:
        ValueError: the folder holds the features of another run; more than 5% of the photos are bad.
    """
    model = load_to_train(towers)
    _check_origin(folder, model, shards, settings)
    order = np.random.default_rng(settings.seed).permutation(len(shards))
    chunks = np.array_split(order, -(-len(order) // PHOTOS))
    paths = [[folder / f"crop{crop}" / f"{i:05d}" for i in range(len(chunks))] for crop in range(crops)]
    missing = [
        (path, rows, crop)
        for crop, own in enumerate(paths)
        for path, rows in zip(own, chunks, strict=True)
        if not _is_whole(path)
    ]
    _compute("features", partial(_write_chunk, shards=shards, settings=settings), missing, towers)
    opened = [[_open_chunk(path) for path in own] for own in paths]
    bad = len(shards) - sum(len(chunk.rows) for chunk in opened[0])
    log.info("features of %d photos; %d bad ones left out", len(shards) - bad, bad)
    if bad > MAX_BAD * len(shards):
        raise ValueError(f"{bad} of {len(shards)} photos cannot be read (the log names them): mend the data")
    return opened


def _check_origin(folder: Path, model: SegCLIP, shards: Shards, settings: FeatureSettings) -> None:
    """Refuse to mix features of different origins in one folder."""
    digest = hashlib.sha256()
    for parameter in model.image.tower.trunk.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    checksums = [shard.sha256 for shard in shards.index.shards]
    digest.update(repr((checksums, settings.reduction, settings.seed)).encode())
    # Features of the usual settings are known without these, as they always were.
    for name in ("crop_scale", "mask_ratio", "masked_photos"):
        if (value := getattr(settings, name)) != getattr(FeatureSettings, name):
            digest.update(repr(value).encode())
    stamp = folder / "made-of"
    folder.mkdir(parents=True, exist_ok=True)
    if not stamp.exists():
        with atomic(stamp) as temporary:
            temporary.write_text(digest.hexdigest())
    if stamp.read_text() != digest.hexdigest():
        raise ValueError(f"{folder}: features of other towers, photos or settings; give another folder or delete it")


def _compute(title: str, work: Callable[..., None], tasks: Sequence[tuple], towers: str) -> None:
    """Each task by one of as many processes as there are cores."""
    if not tasks:
        return
    workers = min(os.cpu_count() or 1, len(tasks))
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (towers,)) as pool:
        futures = [pool.submit(work, *task) for task in tasks]
        try:
            for future in track(as_completed(futures), title, total=len(futures)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_model: SegCLIP  # of a worker process


def _start_worker(towers: str) -> None:
    global _model
    torch.set_num_threads(1)
    _model = load_to_train(towers).to(torch.bfloat16)


def _write_chunk(path: Path, rows: np.ndarray, crop: int, *, shards: Shards, settings: FeatureSettings) -> None:
    photos = list(_prepare_photos(rows, shards, crop, settings))
    if not photos:
        raise ValueError(f"none of the {len(rows)} photos of a chunk can be read (the log names them): mend the data")
    arrays = {name: np.stack([photo[name] for photo in photos]) for name in photos[0]}
    some = slice(masked_count(len(photos), settings.masked_photos))
    arrays |= _encode(arrays["pixels"], arrays["mask"][some], settings.mask_ratio)
    arrays |= {name: arrays[name][some] for name in ("pixels", "mask")}
    unfinished = path.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, array in arrays.items():
        with (unfinished / f"{name}.npy").open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    (unfinished / SUMS).write_text(json.dumps({name: _sum(unfinished / f"{name}.npy") for name in arrays}))
    sync_folder(unfinished)
    shutil.rmtree(path, ignore_errors=True)  # a damaged one
    unfinished.rename(path)


def masked_count(photos: int, share: float) -> int:
    """How many of some photos the masked branch sees: at least one."""
    return max(1, round(share * photos))


def _prepare_photos(
    rows: np.ndarray, shards: Shards, crop: int, settings: FeatureSettings
) -> Iterator[dict[str, np.ndarray]]:
    image = _model.config.image
    reading = ReaderConfig(1, image.side, image.patch, crop_scale=settings.crop_scale, reduction=settings.reduction)
    for row in rows:
        generator = np.random.default_rng((settings.seed, crop, int(row)))
        try:
            pixels, superpixels = cut_sample(shards[int(row)], reading, generator)
        except SampleError as error:
            log.warning("left out: %s", error)
            continue
        mask = generator.random((image.side // image.patch) ** 2, dtype=np.float32)
        yield {"rows": np.asarray(row), "pixels": pixels, "mask": mask, "superpixels": superpixels}


@torch.inference_mode()
def _encode(pixels: np.ndarray, mask: np.ndarray, mask_ratio: float) -> dict[str, np.ndarray]:
    order = torch.from_numpy(mask).argsort(dim=1)
    keep = order[:, : visible_count(order.shape[1], mask_ratio)]
    patches, visible = [], []
    for i in range(0, len(pixels), 8):
        normed = _model.image.normalise(pixels[i : i + 8]).bfloat16()
        patches.append(_model.image.encode_patches(normed).half())
        if len(own := keep[i : i + 8]):
            visible.append(_model.image.encode_patches(normed[: len(own)], own).half())
    return {"patches": torch.cat(patches).numpy(), "visible": torch.cat(visible).numpy()}


def _is_whole(path: Path) -> bool:
    """Whether a chunk is there as it was written: what a crash cut, or a disk changed, is computed again.

    Chunks of earlier versions have no checksums: their numbers must be finite.
    """
    try:
        if not path.exists():
            return False
        chunk, sums = _open_chunk(path), path / SUMS
        if not sums.exists():
            if not all(np.isfinite(array).all() for array in vars(chunk).values()):
                raise ValueError("numbers that are not finite")
            return True
        for name, expected in json.loads(sums.read_text()).items():
            if _sum(path / f"{name}.npy") != expected:
                raise ValueError(f"{name}.npy has another checksum")
        return True
    except (OSError, ValueError, EOFError, AttributeError, RecursionError) as error:
        log.warning("%s: damaged (%s); computed again", path, error)
        return False


def _sum(file: Path) -> int:
    """Checksum of a file."""
    found = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def _open_chunk(path: Path) -> FeatureChunk:
    return FeatureChunk(
        **{field.name: np.load(path / f"{field.name}.npy", mmap_mode="r") for field in fields(FeatureChunk)}
    )
