"""What frozen towers give for a few fixed crops of each photo, computed once and kept on disk.

The cache is a folder of blocks, each a folder of .npy files that is written aside and renamed: what is there is
whole, and a run that was broken goes on with the blocks that are missing. The masked pass has fixed masks too, one
for each crop. The trunk runs in bfloat16, which halves the time. On demand the crops are encoded at half their side
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
from segclip.data.normalise import normalise
from segclip.data.reader import ReaderConfig, cut_sample
from segclip.data.shards import SampleError, Shards
from segclip.data.superpixels import Reduction
from segclip.model.reconstruction import visible_count
from segclip.model.segclip import SegCLIP
from segclip.train.config import TrainConfig
from segclip.utils.files import atomic

BLOCK = 64  # photos in a block
SMALL = "small.npy"  # file of a block that is added when asked for
MAX_BAD = 0.05  # share of unreadable photos past which the data must be mended
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Cached arrays of one crop of some photos.

    Attributes:
        rows: (N,) which sample of the shards each photo is.
        pixels: (N,S,S,3) uint8, the crop.
        patches: (N,P,D) float16, the trunk's features.
        visible: (N,V,D) float16, the trunk's features of the visible patches.
        mask: (N,P) float32; the patches with the smallest values are the visible ones, ascending.
        superpixels: (N,rows,columns) int32.
        small: (N,P/4,D) float16, the trunk's features of the crop at half its side; None where nobody asked for them.
    """

    rows: np.ndarray
    pixels: np.ndarray
    patches: np.ndarray
    visible: np.ndarray
    mask: np.ndarray
    superpixels: np.ndarray
    small: np.ndarray | None = None


def cache_features(
    towers: str,
    shards: Shards,
    folder: Path,
    *,
    crops: int,
    small: bool = False,
    crop_scale: tuple[float, float] = TrainConfig.crop_scale,
    reduction: Reduction,
    seed: int,
) -> list[list[Block]]:
    """Compute what is missing in `folder`, over all cores, and open it memory-mapped.

    Args:
        towers: the model whose trunk is used, as `segclip.load` takes it.
        shards: the photos.
        folder: the cache; it belongs to these towers, shards, crop_scale, reduction and seed. More crops, and what is
            small, can be added later.
        crops: how many of each photo.
        small: each crop at half its side too.
        crop_scale: smallest and largest share of a photo's area that a crop takes.
        reduction: of superpixels to patches, see `segclip.data.superpixels.patch_superpixels`.
        seed: of the crops, the masks and the order of the photos.

    Returns:
        For each crop, the blocks of all photos, in the same order.

    Raises:
        ValueError: the folder holds the features of another run; more than 5% of the photos are bad; half the side is
            no whole number of patches.
    """
    model = load(towers, "cpu")
    image = model.config.image
    if small and image.side % (2 * image.patch):
        raise ValueError(
            f"half of the image side {image.side} is not a multiple of the patch {image.patch}; set half_size_prob to 0"
        )
    _claim(folder, model, shards, crop_scale, reduction, seed)
    order = np.random.default_rng(seed).permutation(len(shards))
    blocks = np.array_split(order, -(-len(order) // BLOCK))
    paths = [[folder / f"crop{crop}" / f"{i:05d}" for i in range(len(blocks))] for crop in range(crops)]
    work = partial(_write_block, shards=shards, crop_scale=crop_scale, reduction=reduction, seed=seed)
    missing = [
        (path, rows, crop)
        for crop, row in enumerate(paths)
        for path, rows in zip(row, blocks, strict=True)
        if not path.exists()
    ]
    _compute("features", work, missing, towers)
    if small:
        every = [(path,) for row in paths for path in row]
        _compute("features at half size", _write_small, [own for own in every if not (own[0] / SMALL).exists()], towers)
    opened = [[_open_block(path, small) for path in row] for row in paths]
    bad = len(shards) - sum(len(block.rows) for block in opened[0])
    log.info("features of %d photos; %d bad ones left out", len(shards) - bad, bad)
    if bad > MAX_BAD * len(shards):
        raise ValueError(f"{bad} of {len(shards)} photos cannot be read (the log names them): mend the data")
    return opened


def _claim(
    folder: Path,
    model: SegCLIP,
    shards: Shards,
    crop_scale: tuple[float, float],
    reduction: Reduction,
    seed: int,
) -> None:
    """Refuse to mix features of different origins in one folder."""
    digest = hashlib.sha256()
    for parameter in model.image.trunk.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    digest.update(repr(([shard.sha256 for shard in shards.index.shards], reduction, seed)).encode())
    if crop_scale != TrainConfig.crop_scale:  # features of the usual one are known without it, as they always were
        digest.update(repr(crop_scale).encode())
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


def _write_block(
    path: Path,
    rows: np.ndarray,
    crop: int,
    *,
    shards: Shards,
    crop_scale: tuple[float, float],
    reduction: Reduction,
    seed: int,
) -> None:
    photos = list(_prepare_photos(rows, shards, crop, crop_scale, reduction, seed))
    if not photos:
        raise ValueError(f"none of the {len(rows)} photos of a block can be read (the log names them): mend the data")
    arrays = {name: np.stack([photo[name] for photo in photos]) for name in photos[0]}
    aside = path.with_suffix(".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, array in (arrays | _encode(arrays["pixels"], arrays["mask"])).items():
        np.save(aside / f"{name}.npy", array)
    aside.rename(path)


@torch.inference_mode()
def _write_small(path: Path) -> None:
    """Add the features at half size to a block: four of its crops in one image, the last ones repeated to fill it."""
    side, patch, crops = _model.config.image.side // 2, _model.config.image.patch, _open_block(path, False).pixels
    halves = np.stack(
        [np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC)) for crop in crops]
    )
    quarters = halves[np.arange(-(-len(halves) // 4) * 4) % len(halves)].reshape(-1, 2, 2, side, side, 3)
    images = quarters.swapaxes(2, 3).reshape(-1, 2 * side, 2 * side, 3)
    patches = torch.cat(
        [_model.image.encode_patches(normalise(images[i : i + 8]).bfloat16()) for i in range(0, len(images), 8)]
    )
    grid = side // patch
    patches = patches.unflatten(1, (2, grid, 2, grid)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
    with atomic(path / SMALL) as temporary, temporary.open("wb") as file:
        np.save(file, patches[: len(crops)].half().numpy())


def _prepare_photos(
    rows: np.ndarray, shards: Shards, crop: int, crop_scale: tuple[float, float], reduction: Reduction, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    image = _model.config.image
    cutting = ReaderConfig(1, image.side, image.patch, crop_scale=crop_scale, reduction=reduction)
    for row in rows:
        generator = np.random.default_rng((seed, crop, int(row)))
        try:
            pixels, superpixels = cut_sample(shards[int(row)], cutting, generator)
        except SampleError as error:
            log.warning("left out: %s", error)
            continue
        mask = generator.random((image.side // image.patch) ** 2, dtype=np.float32)
        yield {"rows": np.asarray(row), "pixels": pixels, "mask": mask, "superpixels": superpixels}


@torch.inference_mode()
def _encode(pixels: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    order = torch.from_numpy(mask).argsort(dim=1)
    keep = order[:, : visible_count(order.shape[1])]
    patches, visible = [], []
    for i in range(0, len(pixels), 8):
        normed = normalise(pixels[i : i + 8]).bfloat16()
        patches.append(_model.image.encode_patches(normed).half())
        visible.append(_model.image.encode_patches(normed, keep[i : i + 8]).half())
    return {"patches": torch.cat(patches).numpy(), "visible": torch.cat(visible).numpy()}


def _open_block(path: Path, small: bool) -> Block:
    names = [field.name for field in fields(Block) if field.name != "small"] + ["small"] * small
    return Block(**{name: np.load(path / f"{name}.npy", mmap_mode="r") for name in names})
