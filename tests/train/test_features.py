"""Learning over frozen towers: cached features, and batches of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pixels import normalise
from helpers.small_model import ADAPTED, SENTENCE, small_model
from helpers.small_runs import CACHE

from segclip import load
from segclip.config import LossSettings
from segclip.data.shards import Shards
from segclip.losses import Words, best_logits, retrieval_loss, vocabulary_loss, word_logits, words_loss
from segclip.model.layers import Adapter
from segclip.model.segclip import Noise, combine_parts
from segclip.train.caption_words import CaptionWords
from segclip.train.config import TrainConfig
from segclip.train.feature_batches import CachedStream, as_text, embed_texts, read_captions
from segclip.train.feature_cache import FeatureSettings, cache_features, masked_count
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


def test_losses_with_words_compare_regions_and_image_with_the_vocabulary() -> None:
    """Two of their words for the first photo, none for the second; without words these terms are left out."""
    model, weights = small_model(ADAPTED), {"words": 1.0, "multiple_instance": 1.0, "retrieval": 1.0, "presence": 1.0}
    patches, text = torch.randn(2, 16, 64), torch.randn(2, 64)
    words = Words(torch.tensor([[3, 0], [-1, -1]]), torch.randn(5, 64))
    noise = Noise(torch.zeros(2, 4, 16), torch.rand(1, 16), torch.zeros(1, 4, 3))

    def terms(words: Words | None) -> dict[str, torch.Tensor]:
        pixels, power = torch.zeros(1, 3, 56, 56), LossSettings(words_power=3.0)
        found = model.parts_from_patches(
            patches, lambda: patches, pixels, text, None, noise, weights=weights, settings=power, words=words
        )
        return found.terms

    found, image = terms(words), model.image.gather(patches)
    shares, scale = image.hard.mean(dim=-1), model.logit_scale.exp()
    logits, whole = word_logits(image.regions, words, scale), word_logits(image.embedding, words, scale)
    best = best_logits(logits, shares)
    torch.testing.assert_close(found["words"], words_loss(logits, shares, words.ids, 3.0))
    torch.testing.assert_close(found["multiple_instance"], vocabulary_loss(best, words.ids))
    torch.testing.assert_close(found["retrieval"], retrieval_loss(best, words.ids))
    torch.testing.assert_close(found["presence"], vocabulary_loss(whole, words.ids))
    assert terms(None) == {}


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


def test_the_masked_branch_sees_a_share_of_the_photos(data: Shards, config: TrainConfig, tmp_path: Path) -> None:
    assert config.init_from
    settings = FeatureSettings(crop_scale=(1.0, 1.0), masked_photos=0.25)
    ((chunk,),) = cache_features(config.init_from, data, tmp_path, settings)
    assert chunk.patches.shape == (24, 16, 64) and chunk.superpixels.shape == (24, 4, 4)
    assert len(chunk.pixels) == len(chunk.visible) == len(chunk.mask) == 6
    model = load(config.init_from, "cpu").to(torch.bfloat16)
    keep = torch.tensor(chunk.mask).argsort(dim=1)[:, : chunk.visible.shape[1]]
    with torch.inference_mode():
        pixels = model.image.normalise(np.array(chunk.pixels)).bfloat16()
        patches, visible = model.image.encode_patches(pixels), model.image.encode_patches(pixels, keep)
    np.testing.assert_allclose(chunk.patches[:6], patches.float(), atol=0.1)
    np.testing.assert_allclose(chunk.visible, visible.float(), atol=0.1)
    with pytest.raises(ValueError, match="features of other towers, photos or settings"):
        cache_features(config.init_from, data, tmp_path, replace(settings, masked_photos=0.5))
    assert [masked_count(photos, 0.0625) for photos in (1, 8, 64, 128)] == [1, 1, 4, 8]


def test_batches_draw_patches_captions_and_words_of_photos(data: Shards, config: TrainConfig, tmp_path: Path) -> None:
    assert config.init_from
    captions = read_captions(data)
    crops = cache_features(config.init_from, data, tmp_path, FeatureSettings(masked_photos=0.5), crops=2)
    words = CaptionWords(("cat", "dog"), [[i % 2] if i % 3 else [] for i in range(len(captions))])
    said = {
        text: torch.rand(64) for text in (*(text for own in captions for text in own), *map(as_text, ("cat", "dog")))
    }
    owner = {
        p.tobytes(): int(row)
        for crop in crops
        for chunk in crop
        for row, photo in zip(chunk.rows, chunk.patches, strict=True)
        for p in photo
    }

    def open_stream(words: CaptionWords | None, rank: int = 0, world: int = 1) -> CachedStream:
        device = torch.device("cpu")
        return CachedStream(crops, captions, words, said, config, 4, rank=rank, world=world, device=device)

    stream = open_stream(words)
    drawn = list(stream.epoch(1, 0))
    assert len(drawn) == stream.steps == 6
    seen = []
    for batch in drawn:
        assert batch.words and torch.equal(
            batch.words.vocabulary, torch.stack([said[as_text(w)] for w in ("cat", "dog")])
        )
        assert batch.patches.shape == (4, 12, 64) and batch.superpixels.shape == (4, 12)
        assert len(batch.pixels) == len(batch.visible) == len(batch.noise.mask) == 2
        for patches, text, ids in zip(batch.patches, batch.text, batch.words.ids, strict=True):
            (photo,) = {owner[patch.half().numpy().tobytes()] for patch in patches}
            assert len({patch.numpy().tobytes() for patch in patches}) == 12
            assert any(torch.equal(text, said[caption]) for caption in captions[photo])
            assert ids[ids >= 0].tolist() == words.held[photo]
            seen.append(photo)
    assert len(set(seen)) == len(seen) == 24, "each photo once in a pass"
    for batch, again in zip(drawn[2:], stream.epoch(1, 2), strict=True):
        assert torch.equal(batch.patches, again.patches) and torch.equal(batch.text, again.text)
        assert torch.equal(batch.noise.gumbel, again.noise.gumbel) and torch.equal(batch.pixels, again.pixels)
    shares = [next(open_stream(words, rank, 2).epoch(1, 0)) for rank in (0, 1)]
    photos = [{owner[patches[0].half().numpy().tobytes()] for patches in share.patches} for share in shares]
    assert photos[0] | photos[1] == set(seen[:4])
    wordless = next(open_stream(None).epoch(1, 0))
    assert wordless.words is None and torch.equal(wordless.patches, drawn[0].patches)
    with pytest.raises(ValueError, match="batch 4 does not divide among 3 processes"):
        open_stream(words, world=3)


def test_texts_are_embedded_once_and_without_the_adapter(config: TrainConfig, tmp_path: Path) -> None:
    model, texts, file = small_model(ADAPTED), ["a cat", "a red car on a road"], tmp_path / "texts.pt"
    assert isinstance(model.text_adapter, Adapter)
    torch.nn.init.normal_(model.text_adapter.fc2.weight)
    with torch.inference_mode():
        expected = dict(zip(texts, model.text(model.tokenize(texts)), strict=True))
    found = embed_texts(model, [*texts, "a cat"], file)
    assert found.keys() == expected.keys()
    for text in texts:
        torch.testing.assert_close(found[text], expected[text])
    written = file.stat().st_mtime_ns
    assert embed_texts(model, reversed(texts), file).keys() == found.keys() and file.stat().st_mtime_ns == written
    assert set(embed_texts(model, ["a dog"], file)) == {"a dog"} and file.stat().st_mtime_ns > written


def test_what_is_kept_of_texts_is_for_the_tower_that_read_them(tmp_path: Path) -> None:
    model, file = small_model(ADAPTED), tmp_path / "texts.pt"
    before = embed_texts(model, ["a cat"], file)["a cat"]
    with torch.no_grad():
        next(model.text.parameters()).mul_(2)
    changed = embed_texts(model, ["a cat"], file)["a cat"]
    assert not torch.equal(changed, before)
    for damage in (b"", file.read_bytes()[:-99]):
        file.write_bytes(damage)
        assert torch.equal(embed_texts(model, ["a cat"], file)["a cat"], changed)


@pytest.mark.parametrize("damage", ["cut", "a bit", "NaN, without checksums"])
def test_a_damaged_chunk_of_features_is_computed_again(
    damage: str, data: Shards, config: TrainConfig, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole / "features", tmp_path / "features")
    file = tmp_path / "features/crop1/00000/patches.npy"
    expected = file.read_bytes()
    changed = bytearray(expected)
    if damage == "a bit":
        changed[-5] ^= 1
    elif damage == "cut":
        del changed[-1:]
    else:
        changed[-2:] = np.float16("nan").tobytes()
        file.with_name("crc32.json").unlink()
    file.write_bytes(changed)
    assert config.init_from
    settings = FeatureSettings(masked_photos=CACHE.reconstruction_fraction, mask_ratio=ADAPTED.mask_ratio)
    cache_features(config.init_from, data, tmp_path / "features", settings, crops=2)
    assert file.read_bytes() == expected and "00000: damaged" in caplog.text


def test_losses_with_words_need_captions_that_have_some(
    data: Shards, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segclip.train.run.read_captions", lambda shards: [["so very"] for _ in range(len(shards))])
    with pytest.raises(ValueError, match=r"need words, and no word is said of 8 of these 25 photos or more; give more"):
        train(config, data, tmp_path)
    assert not (tmp_path / "features").exists()
