"""Learning over frozen towers: cached features, mosaics of them, and their batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pixels import normalise
from helpers.small_model import SENTENCE, small_model
from helpers.small_runs import CACHE
from PIL import Image

from segclip import load
from segclip.checkpoints.native import save_model
from segclip.data.shards import Shards
from segclip.model.grouping import Grouping
from segclip.model.segclip import Noise, combine_parts
from segclip.train.config import TrainConfig
from segclip.train.feature_batches import CachedStream, read_captions
from segclip.train.feature_cache import FeatureSettings, cache_features
from segclip.train.run import train


def test_cached_features_give_the_losses_of_the_model() -> None:
    torch.manual_seed(1)
    model = small_model(SENTENCE)
    pixels = normalise(torch.randint(0, 256, (3, 56, 56, 3), dtype=torch.uint8))
    token_ids = model.tokenize(["a cat", "a dog", "a red car on a road"])
    superpixels = torch.randint(0, 3, (3, 4, 4))
    noise = model.draw_noise(pixels)
    plain = model.losses(pixels, token_ids, superpixels, noise=noise)
    keep = noise.mask.argsort(dim=1)[:, : noise.gumbel_visible.shape[-1]]
    patches, visible = model.image.encode_patches(pixels), model.image.encode_patches(pixels, keep)
    text = model.encode_text(token_ids)
    ids = superpixels.flatten(1)
    cached = combine_parts(model.parts_from_patches(patches, lambda: visible, pixels, text, ids, noise))
    assert torch.equal(plain.total, cached.total)

    part = combine_parts(
        model.parts_from_patches(patches, lambda: visible[:2], pixels[:2], text, superpixels.flatten(1), noise)
    )
    two = Noise(noise.gumbel[:2], noise.mask[:2], noise.gumbel_visible[:2])
    alone = model.losses(pixels[:2], token_ids[:2], superpixels[:2], noise=two)
    torch.testing.assert_close(part.reconstruction, alone.reconstruction)
    torch.testing.assert_close(part.contrastive, plain.contrastive)


def test_a_photo_in_a_mosaic_is_the_maximum_and_the_mean_of_its_regions() -> None:
    """Three photos of 4 patches in a row; the third has no region of its own, so its maximum is over all of them."""
    tower = small_model(SENTENCE).image
    regions = torch.randn(1, 4, 64)
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1])  # center of each patch; centers 2 and 3 are empty
    hard = F.one_hot(owner, 4).T[None].float()
    found = tower.embed_mosaic(Grouping(regions, hard, hard), 3)
    _, each = tower.embed_regions(regions)
    for block in tower.region_blocks:
        regions = block(regions)
    for photo, (own, shares) in enumerate((([0], [3, 1]), ([1], [1, 3]), ([0, 1, 2, 3], [2, 2]))):
        largest = tower.norm_post(regions[0, own].amax(dim=0)) @ tower.projection
        mean = torch.tensor(shares) / 4 @ F.normalize(each[0, :2], dim=-1)
        torch.testing.assert_close(found[photo], F.normalize(largest, dim=-1) + F.normalize(mean, dim=-1))


def test_runs_share_features_of_the_same_settings(data: Shards, config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    shared = replace(config, cache=replace(CACHE, folder=str(folder)), steps=1)
    train(shared, data, tmp_path / "first")
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*.npy")}
    train(replace(shared, seed=1), data, tmp_path / "second")
    assert written and written == {file: file.stat().st_mtime_ns for file in folder.rglob("*.npy")}
    assert not (tmp_path / "second" / "features").exists()
    with pytest.raises(ValueError, match="features of other towers, photos or settings; give another folder"):
        train(replace(shared, reduction="reference"), data, tmp_path / "third")


def test_batches_mix_patches_of_photos_and_keep_their_superpixels_apart(
    data: Shards, config: TrainConfig, whole: Path
) -> None:
    assert config.init_from
    captions = read_captions(data)
    crops = cache_features(config.init_from, data, whole / "features", FeatureSettings(), crops=2)
    words = [["a square"], *([] for _ in captions[1:])]
    texts = {text: torch.rand(64) for own in (*captions, *words) for text in own}
    known = {photo[p].tobytes() for crop in crops for chunk in crop for photo in chunk.patches for p in range(16)}
    pairs = replace(config, cache=replace(CACHE, mosaics=(2,)))
    stream = CachedStream(crops, captions, words, texts, pairs, 4, rank=0, world=1, device=torch.device("cpu"))
    drawn = list(stream.epoch(1, 0))
    assert len(drawn) == stream.steps == 6
    for batch, again in zip(drawn[2:], stream.epoch(1, 2), strict=True):
        assert batch.patches.shape == (2, 16, 64) and batch.superpixels.shape == (2, 16)
        assert all(p.half().numpy().tobytes() in known for p in batch.patches.flatten(0, 1))
        for row in batch.superpixels:
            assert not set(row[:8].tolist()) & set(row[8:].tolist())
        assert torch.equal(batch.patches, again.patches) and torch.equal(batch.text, again.text)
        assert torch.equal(batch.noise.gumbel, again.noise.gumbel)
    first = [batch.text for epoch in range(40) for batch in stream.epoch(epoch, 0)]
    seen = sum(int((text == texts["a square"]).all(dim=1).any()) for text in first)
    assert 10 <= seen <= 30  # of 40 draws for the photo that has a word
    with pytest.raises(ValueError, match="does not divide into mosaics among 3 processes"):
        CachedStream(crops, captions, words, texts, pairs, 4, rank=0, world=3, device=torch.device("cpu"))


def test_photos_in_large_mosaics_are_seen_at_half_size(data: Shards, config: TrainConfig, tmp_path: Path) -> None:
    assert config.init_from
    (chunks,) = cache_features(config.init_from, data, tmp_path, FeatureSettings(), half_size=True)
    model = load(config.init_from, "cpu").to(torch.bfloat16)
    chunk, half = chunks[0], model.config.image.side // 2
    assert chunk.half_size is not None and chunk.half_size.shape == (len(chunk.rows), 4, 64)
    small = [np.asarray(Image.fromarray(crop).resize((half, half), Image.Resampling.BICUBIC)) for crop in chunk.pixels]
    image = np.vstack([np.hstack(small[:2]), np.hstack(small[2:4])])
    patches = model.image.encode_patches(normalise(image[None]).bfloat16()).half().detach().numpy()[0].reshape(4, 4, 64)
    for photo, (row, column) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        expected = patches[row : row + 2, column : column + 2].reshape(4, 64)
        np.testing.assert_allclose(chunk.half_size[photo], expected, atol=0.1)

    captions = read_captions(data)
    texts = {caption: torch.rand(64) for own in captions for caption in own}
    words: list[list[str]] = [[] for _ in captions]
    for photos, kind in ((2, chunk.patches), (4, chunk.half_size)):
        known = {patch.tobytes() for own in kind for patch in own}
        mixed = replace(config, batch=4, cache=replace(CACHE, crops=1, mosaics=(photos,), half_size_prob=1.0))
        stream = CachedStream([chunks], captions, words, texts, mixed, 4, rank=0, world=1, device=torch.device("cpu"))
        batch = next(stream.epoch(0, 0))
        assert batch.patches.shape == (4 // photos, 16, 64)
        assert all(patch.half().numpy().tobytes() in known for patch in batch.patches.flatten(0, 1))


def test_half_a_side_that_is_no_whole_number_of_patches(data: Shards, tmp_path: Path) -> None:
    odd = replace(SENTENCE, image=replace(SENTENCE.image, side=3 * SENTENCE.image.patch))
    save_model(small_model(odd), tmp_path / "odd.safetensors")
    with pytest.raises(
        ValueError, match=r"half of the image side .* not a multiple of the patch .* half_size_prob to 0"
    ):
        cache_features(
            str(tmp_path / "odd.safetensors"), data, tmp_path / "features", FeatureSettings(), half_size=True
        )
    assert not (tmp_path / "features").exists()
