"""Batches of cached features: patches of photos, what their captions say, and noise.

Axes: B photos, P patches, V visible patches, D width, E embedding, W words of a caption.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from segclip.data.shards import SampleError, Shards
from segclip.losses import Words
from segclip.model.grouping import sample_gumbel
from segclip.model.segclip import Noise, Parts, SegCLIP
from segclip.text.prompts import OPEN_TEMPLATES
from segclip.text.tokenizers import PADDING
from segclip.train.caption_words import CaptionWords
from segclip.train.config import TrainConfig
from segclip.train.feature_cache import FeatureChunk, masked_count
from segclip.train.initialization import initialize_centers, initialize_projection
from segclip.train.run_files import load_tensors, save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedBatch:
    """What a step gets of its photos: arguments of `SegCLIP.parts_from_patches`.

    But pixels are as they were read, and texts as the text tower gave them.
    """

    patches: Tensor
    visible: Tensor
    pixels: Tensor
    superpixels: Tensor
    text: Tensor
    words: Words | None
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
        adapt = self.model.text_adapter
        return self.model.parts_from_patches(
            batch.patches,
            lambda: batch.visible,
            self.model.image.normalise(batch.pixels),
            adapt(batch.text),
            batch.superpixels,
            batch.noise,
            weights=self.config.losses,
            settings=self.config.loss_settings,
            words=batch.words and Words(batch.words.ids, adapt(batch.words.vocabulary)),
        )


class CachedStream:
    """Batches of cached features for one of `world` processes."""

    def __init__(
        self,
        crops: Sequence[Sequence[FeatureChunk]],
        captions: Sequence[Sequence[str]],
        words: CaptionWords | None,
        embedded: Mapping[str, Tensor],
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
            words: of each photo's captions; None where no loss needs them.
            embedded: the text tower's embedding of each caption, and of each word in `as_text`.
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
        if config.batch % world:
            raise ValueError(f"batch {config.batch} does not divide among {world} processes")
        self.crops, self.captions, self.words, self.embedded = crops, captions, words, embedded
        self.vocabulary = words and torch.stack([embedded[as_text(word)] for word in words.vocabulary])
        self.centers = centers
        self.config, self.cache, self.rank, self.world, self.device = config, config.cache, rank, world, device
        self.steps = photos // config.batch

    def initialize(self, model: SegCLIP) -> None:
        """Start its centers as k-means of the features, and what names the regions from the captions."""
        initialize_centers(model, (patches for chunk in self.crops[0] for patches in chunk.patches), self.config.seed)
        initialize_projection(model, captioned(self.crops[0], self.captions, self.embedded))

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
            own = np.array_split(chosen, self.world)[self.rank]
            yield self._batch(own, np.random.default_rng((self.config.seed, number, step, self.rank)))

    def _batch(self, rows: np.ndarray, generator: np.random.Generator) -> CachedBatch:
        seen, texts, photos = [], [], []
        for c, i in rows.tolist():
            chunk = self.crops[int(generator.integers(len(self.crops)))][c]
            some = slice(None)
            if self.cache.patches:
                some = generator.permutation(chunk.patches.shape[1])[: self.cache.patches]
            seen.append((chunk.patches[i][some], chunk.superpixels[i].reshape(-1)[some]))
            own = self.captions[row := int(chunk.rows[i])]
            texts.append(own[int(generator.integers(len(own)))])
            photos.append(row)
        patches, superpixels = _stacked(seen)
        visible, pixels, mask = _stacked(self._draw_masked(len(rows), generator))
        patches = patches.float()
        seeded = torch.Generator().manual_seed(int(generator.integers(2**62)))
        noise = Noise(
            gumbel=sample_gumbel((len(patches), self.centers, patches.shape[1]), like=patches, generator=seeded),
            mask=mask,
            gumbel_visible=sample_gumbel((len(mask), self.centers, visible.shape[1]), like=patches, generator=seeded),
        )
        return CachedBatch(
            patches=patches.to(self.device),
            visible=visible.float().to(self.device),
            pixels=pixels.to(self.device),
            superpixels=superpixels.to(self.device),
            text=torch.stack([self.embedded[text] for text in texts]).to(self.device),
            words=self._words(photos),
            noise=noise.to(self.device),
        )

    def _words(self, photos: Sequence[int]) -> Words | None:
        if self.words is None or self.vocabulary is None:
            return None
        held = [torch.tensor(self.words.held[photo], dtype=torch.long) for photo in photos]
        ids = pad_sequence(held, batch_first=True, padding_value=-1)
        return Words(ids.to(self.device), self.vocabulary.to(self.device))

    def _draw_masked(self, photos: int, generator: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
        """Any of the photos that the masked branch sees: its loss asks for no captions."""
        drawn = []
        for _ in range(masked_count(photos, self.cache.reconstruction_fraction)):
            chunks = self.crops[int(generator.integers(len(self.crops)))]
            chunk = chunks[int(generator.integers(len(chunks)))]
            i = int(generator.integers(len(chunk.mask)))
            drawn.append((chunk.visible[i], chunk.pixels[i], chunk.mask[i]))
        return drawn


def as_text(word: str) -> str:
    """A word of the vocabulary as the text tower is given it."""
    return OPEN_TEMPLATES[0].format(word)


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
def embed_texts(model: SegCLIP, texts: Iterable[str], file: Path) -> dict[str, Tensor]:
    """The text tower's embedding of each text, without the adapter; kept in `file`, for these texts and this tower."""
    texts = sorted(set(texts), key=lambda text: (len(text), text))
    tower = hashlib.sha256()
    for parameter in model.text.parameters():
        tower.update(parameter.detach().numpy().tobytes())
    made_of = {"texts": texts, "tower": tower.hexdigest()}
    saved = _read_embeddings(file)
    if any(saved.get(name) != value for name, value in made_of.items()):
        tokens = (model.tokenize(texts[i : i + 128]) for i in range(0, len(texts), 128))
        saved = {**made_of, "embeddings": torch.cat([model.text(ids[:, : _longest(ids)]) for ids in tokens])}
        save_tensors(saved, file)
    return dict(zip(texts, saved["embeddings"], strict=True))


def _read_embeddings(file: Path) -> dict[str, Any]:
    """What is kept of texts; nothing where nothing is, or it is damaged: it is computed again."""
    try:
        return load_tensors(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("%s: damaged (%s); computed again", file, error)
        return {}


def _longest(token_ids: Tensor) -> int:
    return int((token_ids != PADDING).any(dim=0).nonzero()[-1]) + 1


def captioned(
    chunks: Sequence[FeatureChunk], captions: Sequence[Sequence[str]], embedded: Mapping[str, Tensor]
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The patches of each photo, and the mean of its captions' embeddings: (P,D) and (E,)."""
    for chunk in chunks:
        for row, patches in zip(map(int, chunk.rows), chunk.patches, strict=True):
            said = torch.stack([F.normalize(embedded[text], dim=-1) for text in captions[row]])
            yield patches, F.normalize(said.mean(dim=0), dim=-1)


def _stacked(rows: list[tuple[np.ndarray, ...]]) -> list[Tensor]:
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
