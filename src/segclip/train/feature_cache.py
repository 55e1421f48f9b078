"""What frozen towers give for a few fixed crops of each photo, computed once and kept on disk.

The cache is a folder of chunks of photos, each a folder of .npy files that gets its name when it is written: what is
there is whole, and a run that was broken goes on with the chunks that are missing. The masked pass has fixed masks too,
one for each crop. The trunk runs in bfloat16, which halves the time. On demand the crops are encoded at half their side
too, four of them in one image, as things are small in photos of many things.
Axes: N photos, P patches, V visible patches, D width.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from segclip.checkpoints.loading import load
from segclip.config import ModelConfig
from segclip.data.reader import ReaderConfig, cut_sample
from segclip.data.shards import SampleError, Shards
from segclip.data.superpixels import Reduction
from segclip.model.reconstruction import visible_count
from segclip.model.segclip import SegCLIP
from segclip.train.config import CacheConfig, TrainConfig
from segclip.utils.files import atomic

PHOTOS = 64  # in a chunk
HALF_SIZE = "small.npy"  # file of a chunk that is added when asked for
MAX_BAD = 0.05  # share of unreadable photos past which the data must be mended
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSettings:
    """What features depend on, besides the towers and the photos.

    Attributes:
        reduction: of superpixels to patches, see `segclip.data.superpixels.patch_superpixels`.
        crop_scale: smallest and largest share of a photo's area that a crop takes.
        mask_ratio: share of the patches that the masked branch does not see.
        seed: of the crops, the masks and the order of the photos.
    """

    reduction: Reduction = TrainConfig.reduction
    crop_scale: tuple[float, float] = TrainConfig.crop_scale
    mask_ratio: float = ModelConfig.mask_ratio
    seed: int = CacheConfig.seed


@dataclass(frozen=True)
class FeatureChunk:
    """Cached arrays of one crop of some photos.

    Attributes:
        rows: (N,) which sample of the shards each photo is.
        pixels: (N,S,S,3) uint8, the crop.
        patches: (N,P,D) float16, the trunk's features.
        visible: (N,V,D) float16, the trunk's features of the visible patches.
        mask: (N,P) float32; the patches with the smallest values are the visible ones, ascending.
        superpixels: (N,rows,columns) int32.
        half_size: (N,P/4,D) float16, the trunk's features of the crop at half its side; None where nobody asked for
            them.
    """

    rows: np.ndarray
    pixels: np.ndarray
    patches: np.ndarray
    visible: np.ndarray
    mask: np.ndarray
    superpixels: np.ndarray
    half_size: np.ndarray | None = None


def cache_features(
    towers: str, shards: Shards, folder: Path, settings: FeatureSettings, *, crops: int = 1, half_size: bool = False
) -> list[list[FeatureChunk]]:
    """Compute what is missing in `folder`, over all cores, and open it memory-mapped.

    Args:
        towers: the model whose trunk is used, as `segclip.load` takes it.
        shards: the photos.
        folder: the cache; it belongs to these towers, shards and settings. More crops, and crops at half their side,
            can be added later.
        settings: what the features depend on.
        crops: how many of each photo.
        half_size: each crop at half its side too.

    Returns:
        For each crop, the chunks of all photos, in the same order.

    Raises:
        ValueError: the folder holds the features of another run; more than 5% of the photos are bad; half the side is
            no whole number of patches.
    """
    model = load(towers, "cpu")
    image = model.config.image
    if half_size and image.side % (2 * image.patch):
        raise ValueError(
            f"half of the image side {image.side} is not a multiple of the patch {image.patch}; set half_size_prob to 0"
        )
    _check_origin(folder, model, shards, settings)
    order = np.random.default_rng(settings.seed).permutation(len(shards))
    chunks = np.array_split(order, -(-len(order) // PHOTOS))
    paths = [[folder / f"crop{crop}" / f"{i:05d}" for i in range(len(chunks))] for crop in range(crops)]
    missing = [
        (path, rows, crop)
        for crop, own in enumerate(paths)
        for path, rows in zip(own, chunks, strict=True)
        if not path.exists()
    ]
    _compute("features", partial(_write_chunk, shards=shards, settings=settings), missing, towers)
    if half_size:
        every = [path for own in paths for path in own]
        missing = [(path,) for path in every if not (path / HALF_SIZE).exists()]
        _compute("features at half size", _write_half_size, missing, towers)
    opened = [[_open_chunk(path, half_size) for path in own] for own in paths]
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
    for name in ("crop_scale", "mask_ratio"):
        if (value := getattr(settings, name)) != getattr(FeatureSettings, name):
            digest.update(repr(value).encode())
    stamp = folder / "made-of"
    folder.mkdir(parents=True, exist_ok=True)
    if not stamp.exists():
        stamp.write_text(digest.hexdigest())
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
    _model = load(towers, "cpu").to(torch.bfloat16)


def _write_chunk(path: Path, rows: np.ndarray, crop: int, *, shards: Shards, settings: FeatureSettings) -> None:
    photos = list(_prepare_photos(rows, shards, crop, settings))
    if not photos:
        raise ValueError(f"none of the {len(rows)} photos of a chunk can be read (the log names them): mend the data")
    arrays = {name: np.stack([photo[name] for photo in photos]) for name in photos[0]}
    unfinished = path.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, array in (arrays | _encode(arrays["pixels"], arrays["mask"], settings.mask_ratio)).items():
        np.save(unfinished / f"{name}.npy", array)
    unfinished.rename(path)


@torch.inference_mode()
def _write_half_size(path: Path) -> None:
    """Add the features at half size to a chunk: four of its crops in one image, the last ones repeated to fill it."""
    side, patch, crops = _model.config.image.side // 2, _model.config.image.patch, _open_chunk(path, False).pixels
    halves = np.stack(
        [np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC)) for crop in crops]
    )
    quarters = halves[np.arange(-(-len(halves) // 4) * 4) % len(halves)].reshape(-1, 2, 2, side, side, 3)
    images = quarters.swapaxes(2, 3).reshape(-1, 2 * side, 2 * side, 3)
    encode, pixels = _model.image.encode_patches, _model.image.normalise(images).bfloat16()
    patches = torch.cat([encode(pixels[i : i + 8]) for i in range(0, len(pixels), 8)])
    grid = side // patch
    patches = patches.unflatten(1, (2, grid, 2, grid)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
    with atomic(path / HALF_SIZE) as temporary, temporary.open("wb") as file:
        np.save(file, patches[: len(crops)].half().numpy())


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
        visible.append(_model.image.encode_patches(normed, keep[i : i + 8]).half())
    return {"patches": torch.cat(patches).numpy(), "visible": torch.cat(visible).numpy()}


def _open_chunk(path: Path, half_size: bool) -> FeatureChunk:
    files = {field.name: f"{field.name}.npy" for field in fields(FeatureChunk) if field.name != "half_size"}
    files |= {"half_size": HALF_SIZE} if half_size else {}
    return FeatureChunk(**{name: np.load(path / file, mmap_mode="r") for name, file in files.items()})
