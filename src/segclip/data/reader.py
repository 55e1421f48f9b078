"""Batches for training out of shards: shuffled, cropped, split over processes, the same on any number of workers.

Which sample stands where in an epoch follows from the index and the seed alone, so a run can go on at any step without
reading what came before. Shards are taken in a random order, a few at a time, and the samples of these few are
shuffled. Axes: B batch, S side of a crop in pixels.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from segclip.data.crops import CROP_SCALE, crop_image, draw_crop
from segclip.data.shards import Sample, SampleError, Shards
from segclip.data.superpixels import Method, Reduction, crop_superpixels, find_superpixels, patch_superpixels
from segclip.utils.failures import Failed

MIXED = 8  # shards whose samples are shuffled together
log = logging.getLogger(__name__)
Draw = tuple[int, int, int]  # shard, sample in it, caption of it (-1: a random one)


@dataclass(frozen=True)
class Batch:
    """Samples of a step, of one process.

    Attributes:
        keys: which samples of the source they are.
        pixels: (B,S,S,3) uint8, 0-255, RGB: `segclip.data.normalise` makes model input of them, on the model's device
            and at a quarter of the traffic.
        captions: one of each photo.
        superpixels: (B,rows,columns), an id per patch.
        bad: samples that could not be read and are not in the batch.
    """

    keys: list[str]
    pixels: UInt8[Tensor, "B S S 3"]
    captions: list[str]
    superpixels: Int32[Tensor, "B rows columns"]
    bad: list[Failed]

    def pin_memory(self) -> "Batch":
        """For copies to a GPU that do not wait; torch's DataLoader calls it."""
        return replace(self, pixels=self.pixels.pin_memory(), superpixels=self.superpixels.pin_memory())


@dataclass(frozen=True)
class ReaderConfig:
    """How samples become batches.

    Attributes:
        batch: samples in a step, of all processes together.
        side: of the square crops, in pixels.
        patch: side of a patch, in pixels.
        captions: "one": an epoch has each photo once, with one of its captions drawn; "all": it has each caption once.
        crop_scale: smallest and largest share of a photo's area that a crop takes.
        reduction: superpixels to patches, see `patch_superpixels`.
        superpixels: how they are found on the fly in shards that have none.
        drop_last: leave out the last incomplete batch of an epoch.
        seed: of the order, the crops and the captions drawn.
    """

    batch: int
    side: int = 224
    patch: int = 16
    captions: Literal["one", "all"] = "one"
    crop_scale: tuple[float, float] = CROP_SCALE
    reduction: Reduction = "majority"
    superpixels: Method = "scikit-image"
    drop_last: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch {self.batch}; give at least 1")
        if self.side % self.patch:
            raise ValueError(f"side {self.side} of the crops is not a multiple of the patch {self.patch}; change one")


class Reader:
    """Epochs of batches for one of `world` processes; together they see every sample once."""

    def __init__(
        self, shards: Shards, config: ReaderConfig, *, rank: int = 0, world: int = 1, workers: int = 0
    ) -> None:
        """Plan the epochs.

        Args:
            shards: what to read.
            config: how.
            rank, world: number of this process, and how many there are.
            workers: processes that read for this one; the batches do not depend on it.

        Raises:
            ValueError: a batch that is larger than the data or does not divide among the processes.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes; expected 0 to {world - 1}")
        if config.batch % world:
            raise ValueError(
                f"batch {config.batch} does not divide among {world} processes; give a multiple of {world}"
            )
        self.shards, self.config, self.rank, self.world, self.workers = shards, config, rank, world, workers
        index = shards.index
        self.sizes = [shard.samples if config.captions == "one" else shard.captions for shard in index.shards]
        if config.drop_last and sum(self.sizes) < config.batch:
            what = "photos" if config.captions == "one" else "captions"
            raise ValueError(
                f"{shards.address}: {sum(self.sizes)} {what} are less than one batch of {config.batch}; lower the batch"
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(sum(self.sizes), self.config.batch)
        return whole + bool(rest and not self.config.drop_last)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on, for this process; bad samples are logged.

        A batch is smaller by its bad samples; without `drop_last`, the last one is shared out as evenly as it goes.
        """
        loader = DataLoader(
            _Samples(self.shards, self.config, number),
            batch_sampler=self._plan(number, start),
            num_workers=self.workers,
            collate_fn=partial(_collate, config=self.config),
            pin_memory=torch.cuda.is_available(),
        )
        for batch in loader:
            for failed in batch.bad:
                log.warning("left out: %s: %s", failed.item, failed.reason)
            yield batch

    def _plan(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        """What each of this process's batches is made of."""
        batch = self.config.batch
        waiting = np.zeros((0, 3), np.int64)
        skip = start * batch
        for group in self._groups(epoch):
            size = sum(self.sizes[shard] for shard in group)
            if skip >= size:
                skip -= size
                continue
            waiting = np.concatenate([waiting, self._shuffled(group, epoch)[skip:]])
            skip = 0
            whole = len(waiting) // batch * batch
            for draws in waiting[:whole].reshape(-1, batch, 3):
                yield self._own(draws)
            waiting = waiting[whole:]
        if len(waiting) and not self.config.drop_last:
            yield self._own(waiting)

    def _own(self, draws: np.ndarray) -> list[Draw]:
        return [tuple(draw) for draw in np.array_split(draws, self.world)[self.rank].tolist()]

    def _groups(self, epoch: int) -> Iterator[list[int]]:
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.sizes)).tolist()
        for start in range(0, len(order), MIXED):
            yield order[start : start + MIXED]

    def _shuffled(self, group: Sequence[int], epoch: int) -> np.ndarray:
        draws = np.concatenate([self._draws(shard) for shard in group])
        return np.random.default_rng((self.config.seed, epoch, 1 + group[0])).permutation(draws)

    def _draws(self, shard: int) -> np.ndarray:
        count = self.shards.index.shards[shard].samples
        if self.config.captions == "one":
            sample, caption = np.arange(count), np.full(count, -1)
        else:
            captions = self.shards.table(shard)[:, 1]
            sample = np.repeat(np.arange(count), captions)
            caption = np.arange(len(sample)) - np.repeat(np.cumsum(captions) - captions, captions)
        return np.stack([np.full(len(sample), shard), sample, caption], axis=1)


def cut_sample(
    sample: Sample, config: ReaderConfig, generator: np.random.Generator
) -> tuple[UInt8[np.ndarray, "S S 3"], Int32[np.ndarray, "rows columns"]]:
    """A random crop of a sample's photo, and the superpixel id of each of its patches. Raises SampleError."""
    photo, ids = sample.image(), sample.superpixels()
    box = draw_crop(photo.height, photo.width, generator, config.crop_scale)
    ids = find_superpixels(np.asarray(photo), config.superpixels) if ids is None else ids
    if ids.shape != (photo.height, photo.width):
        raise SampleError(sample.key, f"superpixels of {ids.shape}, a photo of {(photo.height, photo.width)}")
    cut = crop_superpixels(ids, (box.top, box.left, box.height, box.width), config.side)
    return crop_image(photo, box, config.side), patch_superpixels(cut, config.patch, config.reduction)


class _Samples(Dataset):
    """What the workers do: read samples and cut them."""

    def __init__(self, shards: Shards, config: ReaderConfig, epoch: int) -> None:
        self.shards, self.config, self.epoch = shards, config, epoch

    def __getitems__(self, draws: list[Draw]) -> list["_Cut | Failed"]:
        """The samples of a batch, for torch's DataLoader; of a bad one, what is wrong with it."""
        read = []
        for draw in draws:
            try:
                read.append(self._read(draw))
            except SampleError as error:
                read.append(Failed(error.sample, error.reason))
        return read

    def _read(self, draw: Draw) -> "_Cut":
        """Read and cut a sample; all that is random about it follows from these numbers and the seed."""
        sample = self.shards.read(*draw[:2])
        generator = np.random.default_rng((self.config.seed, self.epoch, *draw[:2], 1 + draw[2]))
        try:
            pixels, superpixels = cut_sample(sample, self.config, generator)
        except SampleError:
            raise
        except Exception as error:  # of a library, for data that it did not expect: this sample is bad, no other is
            raise SampleError(sample.key, f"cannot be used ({type(error).__name__}: {error})") from error
        return _Cut(sample.key, pixels, _caption(sample, draw[2], generator), superpixels)


@dataclass(frozen=True)
class _Cut:
    """A sample on its way into a batch."""

    key: str
    pixels: np.ndarray
    caption: str
    superpixels: np.ndarray


def _collate(read: list[_Cut | Failed], config: ReaderConfig) -> Batch:
    good = [cut for cut in read if isinstance(cut, _Cut)]
    rows = config.side // config.patch
    pixels, superpixels = torch.empty(0, config.side, config.side, 3).byte(), torch.empty(0, rows, rows).int()
    if good:  # torch's own collation stacks right into the memory that the processes share
        pixels, superpixels = default_collate([(cut.pixels, cut.superpixels) for cut in good])
    return Batch(
        keys=[cut.key for cut in good],
        pixels=pixels,
        captions=[cut.caption for cut in good],
        superpixels=superpixels,
        bad=[failed for failed in read if isinstance(failed, Failed)],
    )


def _caption(sample: Sample, number: int, generator: np.random.Generator) -> str:
    captions = sample.captions
    if number >= len(captions) or not captions:
        raise SampleError(sample.key, f"{len(captions)} captions; its table says otherwise")
    return captions[int(generator.integers(len(captions))) if number < 0 else number]
