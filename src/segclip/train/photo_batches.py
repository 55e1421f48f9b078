"""Learning from photos: batches out of shards, their noise, and what a model makes of them.

Axes: B samples, S side in pixels, L tokens, C centers, P patches, V visible patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.data.reader import Reader, ReaderConfig
from segclip.data.shards import Shards
from segclip.model.grouping import count_regions
from segclip.model.reconstruction import visible_count
from segclip.model.segclip import Noise, Parts, SegCLIP
from segclip.text.tokenizers import tokenizer_for
from segclip.train.config import TrainConfig
from segclip.train.initialization import initialize_centers

CHUNK = 16  # samples whose noise is drawn together


@dataclass(frozen=True)
class PairBatch:
    """Some pairs on the model's device, with every random draw of their step."""

    pixels: UInt8[Tensor, "B S S 3"]
    token_ids: Int[Tensor, "B L"]
    superpixels: Int[Tensor, "B rows columns"]
    noise: Noise
    bad: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def split(self, size: int | None) -> list["PairBatch"]:
        """Micro-batches of at most `size` pairs."""
        if not size:
            return [self]
        parts = [one.split(size) for one in (self.pixels, self.token_ids, self.superpixels, self.noise)]
        return [PairBatch(*part) for part in zip(*parts, strict=True)]


class PairLearner(nn.Module):
    """Pairs -> Parts; what is wrapped for many processes."""

    def __init__(self, model: SegCLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: PairBatch, embed_only: bool = False) -> Parts:
        """With `embed_only`, Parts has no losses."""
        return self.model.parts(
            self.model.image.normalise(batch.pixels).to(self.model.logit_scale.dtype),
            batch.token_ids,
            batch.superpixels,
            batch.noise,
            weights={} if embed_only else self.config.losses,
            settings=self.config.loss_settings,
        )


class PairStream:
    """Batches of shards for one of `world` processes."""

    def __init__(
        self, shards: Shards, config: TrainConfig, model: ModelConfig, *, rank: int, world: int, device: torch.device
    ) -> None:
        """Plan; raises ValueError for a batch that is larger than the data or does not divide."""
        side, patch = model.image.side, model.image.patch
        reading = ReaderConfig(
            batch=config.batch,
            side=side,
            patch=patch,
            captions=config.captions,
            crop_scale=config.crop_scale,
            reduction=config.reduction,
            seed=config.seed,
        )
        self.reader = Reader(shards, reading, rank=rank, world=world, workers=config.workers)
        self.tokenize = tokenizer_for(replace(model.text, context=min(config.tokens, model.text.context)))
        self.seed, self.share, self.rank, self.device = config.seed, config.batch // world, rank, device
        self.regions, self.patches = count_regions(model), (side // patch) ** 2
        self.shards, self.config, self.model = shards, config, model

    def initialize(self, model: SegCLIP) -> None:
        """Start its centers as k-means of what its trunk gives for the photos, on every process alike."""
        initialize_centers(model, self._trunk_features(model), self.seed)

    @torch.no_grad()
    def _trunk_features(self, model: SegCLIP) -> Iterator[Float[np.ndarray, "P D"]]:
        whole = PairStream(self.shards, self.config, self.model, rank=0, world=1, device=torch.device("cpu"))
        for batch in whole.epoch(0, 0):
            for pairs in batch.split(CHUNK):
                yield from model.image.encode_patches(model.image.normalise(pairs.pixels)).numpy()

    def learner(self, model: SegCLIP) -> PairLearner:
        """What learns from the batches."""
        return PairLearner(model, self.config)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self.reader.steps

    def epoch(self, number: int, start: int) -> Iterator[PairBatch]:
        """The batches of an epoch, from step `start` on."""
        for step, batch in enumerate(self.reader.epoch(number, start), start=number * self.steps + start):
            noise = draw_noise(
                (self.seed, step),
                self.rank * self.share,
                len(batch.keys),
                self.regions,
                self.patches,
                self.device,
                self.model.mask_ratio,
            )
            yield PairBatch(
                batch.pixels.to(self.device, non_blocking=True),
                self.tokenize(batch.captions).to(self.device) if batch.captions else torch.zeros(0, 3).long(),
                batch.superpixels.to(self.device, non_blocking=True),
                noise,
                len(batch.bad),
            )


def draw_noise(
    seed: tuple[int, int],
    first: int,
    count: int,
    regions: int,
    patches: int,
    device: torch.device,
    mask_ratio: float = ModelConfig.mask_ratio,
) -> Noise:
    """The noise of samples `first` to `first + count` of a step's batch: the same on any number of processes."""
    visible = visible_count(patches, mask_ratio)
    chunks = []
    for chunk in range(first // CHUNK, (first + max(count, 1) - 1) // CHUNK + 1):
        (state,) = np.random.SeedSequence((*seed, chunk)).generate_state(1, np.uint64)
        generator = torch.Generator(device).manual_seed(int(state) >> 1)
        width = regions * (patches + visible) + patches
        chunks.append(torch.rand(CHUNK, width, generator=generator, device=device))
    rows = torch.cat(chunks)[first % CHUNK :][:count]
    gumbel, mask, gumbel_visible = rows.split([regions * patches, patches, regions * visible], dim=1)
    return Noise(_gumbel(gumbel).unflatten(1, (regions, -1)), mask, _gumbel(gumbel_visible).unflatten(1, (regions, -1)))


def _gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers in [0,1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-(1 - uniform).log()).clamp(min=tiny).log()
