"""Learning over frozen towers: batches out of their cached features, and what a model makes of them.

Axes: B samples, R images (photos, or mosaics of several), P patches, V visible patches, D width, E embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segclip.data.shards import SampleError, Shards
from segclip.model.grouping import sample_gumbel
from segclip.model.segclip import Noise, Parts, SegCLIP
from segclip.train.config import TrainConfig
from segclip.train.feature_cache import FeatureChunk
from segclip.train.initialization import initialize_centers, initialize_projection
from segclip.train.run_files import save_tensors


@dataclass(frozen=True)
class CachedBatch:
    """What a step gets of its photos: arguments of `SegCLIP.parts_from_patches`, but pixels as they were read."""

    patches: Tensor
    visible: Tensor
    pixels: Tensor
    superpixels: Tensor
    text: Tensor
    photos: int
    noise: Noise
    bad: int = 0

    def __len__(self) -> int:
        return len(self.text)

    def split(self, size: int | None) -> list["CachedBatch"]:
        """Itself: features are small."""
        assert size is None
        return [self]


class CachedLearner(nn.Module):
    """Cached features -> Parts."""

    def __init__(self, model: SegCLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: CachedBatch) -> Parts:
        return self.model.parts_from_patches(
            batch.patches,
            lambda: batch.visible,
            self.model.image.normalise(batch.pixels),
            batch.text,
            batch.superpixels,
            batch.noise,
            weights=self.config.losses,
            settings=self.config.loss_settings,
            photos=batch.photos,
        )


class CachedStream:
    """Batches of cached features for one of `world` processes."""

    def __init__(
        self,
        crops: Sequence[Sequence[FeatureChunk]],
        captions: Sequence[Sequence[str]],
        words: Sequence[Sequence[str]],
        embedded: dict[str, Tensor],
        config: TrainConfig,
        centers: int,
        *,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        """Plan.

        Args:
            crops: as `cache_features` gives them.
            captions: of each photo.
            words: of each photo's captions, drawn half of the time where there are any.
            embedded: the text tower's embedding of all of these.
            config: the recipe.
            centers: of the model.
            rank, world: number of this process, and how many there are.
            device: the model's.

        Raises:
            ValueError: a batch that is larger than the data or does not divide.
        """
        assert config.cache
        photos = sum(len(chunk.rows) for chunk in crops[0])
        if photos < config.batch:
            raise ValueError(f"{photos} photos are less than one batch of {config.batch}; lower the batch")
        for unit in {world * mosaic for mosaic in config.cache.mosaics}:
            if config.batch % unit:
                raise ValueError(f"batch {config.batch} does not divide into mosaics among {world} processes")
        self.crops, self.captions, self.words, self.embedded = crops, captions, words, embedded
        self.centers = centers
        self.config, self.cache, self.rank, self.world, self.device = config, config.cache, rank, world, device
        self.steps = photos // config.batch

    def initialize(self, model: SegCLIP) -> None:
        """Start its centers as k-means of the features, and what names the regions from the captions."""
        initialize_centers(model, (patches for chunk in self.crops[0] for patches in chunk.patches), self.config.seed)
        initialize_projection(model, captioned(self.crops[0], self.captions, self.words, self.embedded))

    def learner(self, model: SegCLIP) -> CachedLearner:
        """What learns from the batches."""
        return CachedLearner(model, self.config)

    def epoch(self, number: int, start: int) -> Iterator[CachedBatch]:
        """The batches of an epoch, from step `start` on; the draws depend on seed, epoch and step alone."""
        generator = np.random.default_rng((self.config.seed, number))
        everything = np.array([(c, i) for c, chunk in enumerate(self.crops[0]) for i in range(len(chunk.rows))])
        order = generator.permutation(everything)
        for step in range(start, self.steps):
            chosen = order[step * self.config.batch : (step + 1) * self.config.batch]
            draws = np.random.default_rng((self.config.seed, number, step))
            photos = int(draws.choice(self.cache.mosaics))
            own = np.array_split(chosen, self.world)[self.rank]
            yield self._batch(own, photos, np.random.default_rng((self.config.seed, number, step, self.rank)))

    def _batch(self, rows: np.ndarray, photos: int, generator: np.random.Generator) -> CachedBatch:
        masked = max(1, round(self.cache.reconstruction_fraction * len(rows)))
        whole, mixed, texts = [], [], []
        for c, i in rows.tolist():
            chunk = self.crops[int(generator.integers(len(self.crops)))][c]
            count = len(chunk.patches[i]) // photos
            patches, superpixels = chunk.patches[i], chunk.superpixels[i]
            if chunk.half_size is not None and photos >= 4 and generator.random() < self.cache.half_size_prob:
                patches, superpixels = chunk.half_size[i], superpixels[1::2, 1::2]
            chosen = generator.permutation(len(patches))[:count] if photos > 1 else slice(None)
            mixed.append((patches[chosen], superpixels.reshape(-1)[chosen]))
            if len(whole) < masked:
                whole.append((chunk.visible[i], chunk.pixels[i], chunk.mask[i]))
            row = int(chunk.rows[i])
            own = self.words[row] if self.words[row] and generator.random() < 0.5 else self.captions[row]
            texts.append(own[int(generator.integers(len(own)))])
        patches, superpixels = _stacked(mixed)
        visible, pixels, mask = _stacked(whole)
        superpixels = superpixels + (superpixels.max() + 1) * torch.arange(len(rows))[:, None]
        patches = patches.float().unflatten(0, (-1, photos)).flatten(1, 2)
        seeded = torch.Generator().manual_seed(int(generator.integers(2**62)))
        noise = Noise(
            gumbel=sample_gumbel((len(patches), self.centers, patches.shape[1]), like=patches, generator=seeded),
            mask=mask,
            gumbel_visible=sample_gumbel((masked, self.centers, visible.shape[1]), like=patches, generator=seeded),
        )
        return CachedBatch(
            patches=patches.to(self.device),
            visible=visible.float().to(self.device),
            pixels=pixels.to(self.device),
            superpixels=superpixels.unflatten(0, (-1, photos)).flatten(1, 2).to(self.device),
            text=torch.stack([self.embedded[text] for text in texts]).to(self.device),
            photos=photos,
            noise=noise.to(self.device),
        )


def read_captions(shards: Shards) -> list[list[str]]:
    """The captions of each photo; none where a sample is damaged."""
    captions = []
    for number in range(len(shards)):
        try:
            captions.append(shards[number].captions)
        except SampleError:
            captions.append([])
    return captions


@torch.inference_mode()
def embed_captions(model: SegCLIP, captions: Sequence[Sequence[str]], file: Path) -> dict[str, Tensor]:
    """The text tower's embedding of every caption, kept in `file`."""
    texts = sorted({caption for own in captions for caption in own}, key=lambda text: (len(text), text))
    if file.exists() and list(saved := torch.load(file, weights_only=True)) == texts:
        return saved
    embeddings = torch.cat([model.encode_text(model.tokenize(texts[i : i + 128])) for i in range(0, len(texts), 128)])
    embedded = dict(zip(texts, embeddings, strict=True))
    save_tensors(embedded, file)
    return embedded


def captioned(
    chunks: Sequence[FeatureChunk],
    captions: Sequence[Sequence[str]],
    words: Sequence[Sequence[str]],
    embedded: dict[str, Tensor],
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The patches of each photo, and the mean of what its captions, or captions and words, say: (P,D) and (E,)."""
    for chunk in chunks:
        for row, patches in zip(map(int, chunk.rows), chunk.patches, strict=True):
            kinds = [own for own in (captions[row], words[row]) if own]
            means = [torch.stack([F.normalize(embedded[text], dim=-1) for text in kind]).mean(dim=0) for kind in kinds]
            yield patches, F.normalize(torch.stack(means).mean(dim=0), dim=-1)


def _stacked(rows: list[tuple[np.ndarray, ...]]) -> list[Tensor]:
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
