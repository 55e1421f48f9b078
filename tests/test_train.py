"""Training over frozen towers: the same run, broken or not; frozen stays frozen; the losses fall."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from shard_files import FAST, map_serially
from small_model import SENTENCE, small_model

from segclip.cli import main
from segclip.config import TrainConfig
from segclip.data.normalise import normalise
from segclip.data.prepare import prepare
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source
from segclip.model.grouping import Grouping
from segclip.model.segclip import Noise
from segclip.model.storage import load_model, save_model
from segclip.train import loop
from segclip.train.features import cache_features
from segclip.train.optim import learning_rate, make_optimiser
from segclip.train.start import FROZEN, start_centers

CONFIG = TrainConfig(epochs=3, crops=2, batch=4, mosaics=(1, 2), reconstructed=0.5, lr=2e-3, save_every=2)
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (128, 128, 128)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of coloured squares with their captions."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    lines = []
    for i in range(24):
        name = list(COLOURS)[i % 4]
        photo = generator.integers(0, 60, (70, 80, 3)).astype(np.uint8)
        photo[15:55, 20:60] = COLOURS[name]
        Image.fromarray(photo).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "captions": [f"a {name} square", f"a photo of something {name}"]})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Their shards, one sample of which is damaged, which fails no run."""
    folder = tmp_path_factory.mktemp("shards")
    with (source / "pairs.jsonl").open("a") as lines:
        lines.write('\n{"image": "0.png", "captions": ["nothing"]}')
    prepare(open_source(source), folder, FAST, map_blocks=map_serially)
    shards = Shards(folder)
    start = int(shards.table(0)[-2, 0])
    tar = bytearray((folder / "pairs-000000.tar").read_bytes())
    tar[start + 512 : start + 600] = bytes(88)
    (folder / "pairs-000000.tar").write_bytes(tar)
    return shards


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("towers") / "towers.safetensors"
    save_model(small_model(SENTENCE), path)
    return str(path)


@pytest.fixture(scope="module")
def whole(data: Shards, towers: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not broken."""
    run = tmp_path_factory.mktemp("whole")
    loop.train(CONFIG, data, run, towers)
    return run


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "samples_per_s"} for line in lines]


def test_a_run_writes_a_line_a_step_and_a_model(whole: Path, towers: str) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 3 * (24 // 4) + 1))
    assert lines[-1]["lr"] == 0
    for line in lines:
        assert line["loss"] == pytest.approx(line["contrastive"] + line["superpixel"] + line["reconstruction"])
    first, last = (np.mean([line["reconstruction"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < first
    before, after = load_model(towers).state_dict(), load_model(whole / "model.safetensors").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(FROZEN) for name in changed)
    assert {"image.grouping.centers", "image.projection", "logit_scale", "reconstruction.mask_token"} <= changed


def test_a_broken_run_goes_on_and_ends_alike(
    data: Shards, towers: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._step
    done = []

    def breaking(*args, **kwargs):
        if len(done) == 9:  # after a step that no saved state knows of
            raise KeyboardInterrupt
        done.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "_step", breaking)
    with pytest.raises(KeyboardInterrupt):
        loop.train(CONFIG, data, tmp_path, towers)
    assert len(metrics(tmp_path)) == 9 and not (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(loop, "_step", real)
    loop.train(CONFIG, data, tmp_path, towers)
    assert metrics(tmp_path) == metrics(whole)
    ended, expected = (load_model(run / "model.safetensors").state_dict() for run in (tmp_path, whole))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


def test_a_run_with_another_recipe_is_refused(data: Shards, towers: str, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"lr 0\.002 -> 0\.1"):
        loop.train(replace(CONFIG, lr=0.1), data, whole, towers)


def test_too_few_photos_and_too_many_bad_ones(data: Shards, towers: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="less than one batch of 64"):
        loop.train(replace(CONFIG, batch=64), data, tmp_path / "a", towers)
    bad = tmp_path / "bad"
    shutil.copytree(data.folder, bad)
    (bad / "pairs-000000.tar").write_bytes(bytes((bad / "pairs-000000.tar").stat().st_size))
    with pytest.raises(ValueError, match="none of the 25 photos of a block can be read"):
        loop.train(CONFIG, Shards(bad), tmp_path / "b", towers)


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
    cached = model.losses_from_patches(patches, visible, pixels, text, superpixels.flatten(1), noise)
    assert torch.equal(plain.total, cached.total)

    part = model.losses_from_patches(patches, visible[:2], pixels[:2], text, superpixels.flatten(1), noise)
    two = Noise(noise.gumbel[:2], noise.mask[:2], noise.gumbel_visible[:2])
    alone = model.losses(pixels[:2], token_ids[:2], superpixels[:2], noise=two)
    torch.testing.assert_close(part.reconstruction, alone.reconstruction)
    torch.testing.assert_close(part.contrastive, plain.contrastive)


def test_a_photo_in_a_mosaic_is_the_maximum_of_its_own_regions() -> None:
    """Three photos of 4 patches in a row; the third has no region of its own, so it gets all of them."""
    tower = small_model(SENTENCE).image
    regions = torch.randn(1, 4, 64)
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1])  # center of each patch; centers 2 and 3 are empty
    hard = F.one_hot(owner, 4).T[None].float()
    found = tower.embed_mosaic(Grouping(regions, hard, hard), 3)
    for block in tower.region_blocks:
        regions = block(regions)
    for photo, own in enumerate(([0], [1], [0, 1, 2, 3])):
        expected = tower.norm_post(regions[0, own].amax(dim=0)) @ tower.projection
        torch.testing.assert_close(found[photo], expected)


def test_batches_mix_patches_of_photos_and_keep_their_superpixels_apart(data: Shards, towers: str, whole: Path) -> None:
    captions = loop.read_captions(data)
    crops = cache_features(towers, data, whole / "features", crops=2, seed=CONFIG.seed)
    texts = {caption: torch.rand(64) for own in captions for caption in own}
    known = {photo[p].tobytes() for crop in crops for block in crop for photo in block.patches for p in range(16)}
    drawn = [list(loop.batches(replace(CONFIG, mosaics=(2,)), crops, captions, texts, epoch=1)) for _ in range(2)]
    for batch, again in zip(*drawn, strict=True):
        assert batch.patches.shape == (2, 16, 64) and batch.superpixels.shape == (2, 16)
        assert all(p.half().numpy().tobytes() in known for p in batch.patches.flatten(0, 1))
        for row in batch.superpixels:
            assert not set(row[:8].tolist()) & set(row[8:].tolist())
        assert torch.equal(batch.patches, again.patches) and torch.equal(batch.text, again.text)


def test_centers_start_where_alike_patches_meet() -> None:
    """Photos of patches around two of four directions: each center holds patches of one direction only."""
    torch.manual_seed(0)
    directions = torch.randn(4, 64)
    kind = torch.stack([torch.randperm(4)[:2].repeat(8) for _ in range(50)])  # photo, patch
    patches = directions[kind] + 0.3 * torch.randn(50, 16, 64)
    purity = []
    for started in (False, True):
        model = small_model(SENTENCE)
        if started:
            start_centers(model, patches.flatten(0, 1), np.random.default_rng(0))
        hard = model.image.grouping(patches).hard
        alike = torch.einsum("bcp,bpk->bck", hard, F.one_hot(kind, 4).float())
        purity.append(float(alike.amax(dim=-1).sum() / alike.sum()))
    assert purity[0] < 0.9 < 0.99 < purity[1]


def test_mosaics_that_do_not_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="mosaics of 3 photos do not divide a batch of 128"):
        TrainConfig(mosaics=(2, 3))


def test_learning_rate() -> None:
    assert learning_rate(15, 200, 4e-3, 0.15) == pytest.approx(2e-3)  # x = 0.075, half of the way up
    assert learning_rate(30, 200, 4e-3, 0.15) == pytest.approx(4e-3)
    assert learning_rate(115, 200, 4e-3, 0.15) == pytest.approx(2e-3)  # half of the way down
    assert learning_rate(200, 200, 4e-3, 0.15) == pytest.approx(0, abs=1e-12)


def test_biases_do_not_decay_and_frozen_parameters_are_left_out(towers: str) -> None:
    model = load_model(towers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    groups = make_optimiser(model, CONFIG).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (group["share"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == {name for name in names.values() if not name.startswith(FROZEN)}
    assert found["image.projection"] == found["logit_scale"] == found["image.norm_post.weight"] == (1, 0.05)
    assert found["image.region_blocks.0.mlp.fc1.bias"] == found["image.grouping.norm_patches.bias"] == (1, 0)
    assert found["image.grouping.centers"] == found["image.grouping.blocks.1.mlp.fc2.weight"] == (0.1, 0.05)
    assert found["image.grouping.key.weight"] == (0.1, 0.05) and found["image.grouping.norm_key.bias"] == (0.1, 0)


def test_a_loss_that_is_not_finite_stops_the_run(data: Shards, towers: str, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        loop.train(replace(CONFIG, lr=math.inf, crops=1), data, tmp_path, towers)


def test_train_command(
    source: Path, towers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("segclip.recipes.RECIPES", {"mini": lambda: replace(CONFIG, crops=1)})
    argv = ["train", "mini", "--data", str(source), "--out", str(tmp_path / "run"), "--towers", towers, "--steps", "2"]
    assert main(argv) == 0
    assert len(metrics(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert main(["train", "mini", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["train", "mini", "--data", "http://127.0.0.1:9/x", "--out", str(tmp_path / "x")]) == 2
    assert "cannot be fetched" in " ".join(capsys.readouterr().err.split())
    argv[3] = str(tmp_path / "run" / "shards")
    assert main([*argv[:5], str(tmp_path / "again"), *argv[6:]]) == 0  # shards are taken as they are
    assert not (tmp_path / "again" / "shards").exists()
