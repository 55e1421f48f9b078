"""Training: the same run, broken or not, on any number of processes; frozen stays frozen; the losses fall."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.shard_files import FAST, map_serially
from helpers.small_model import CLIP, SENTENCE, small_model
from helpers.small_runs import CACHE, CACHED, PAIRS, assert_same_run, metrics, run_script, weights
from PIL import Image

from segclip import load
from segclip.checkpoints.native import load_model, save_model
from segclip.cli import main
from segclip.config import ModelConfig
from segclip.data.normalise import normalise
from segclip.data.prepare import prepare
from segclip.data.scenes import write_scenes
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source
from segclip.model.grouping import CenterGrouping, Grouping
from segclip.model.segclip import Noise, combine_parts
from segclip.train import loop
from segclip.train import run_files as files
from segclip.train.config import TrainConfig
from segclip.train.feature_batches import CachedStream, read_captions
from segclip.train.feature_cache import cache_features
from segclip.train.initialization import start_centers, start_model, start_projection
from segclip.train.recipes import TOWERS
from segclip.train.resolve import resolve
from segclip.train.run import read_recipe, train

FORMER = {"init_from": "start", "init_centers": "centers", "max_grad_norm": "clip", "keep_checkpoints": "keep"}
FORMER_CACHE = {"reconstruction_fraction": "reconstructed", "half_size_prob": "small", "caption_words": "words"}
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
    prepare(open_source(source), folder, FAST, map_chunks=map_serially)
    shards = Shards(folder)
    start = int(shards.table(0)[-2, 0])
    tar = bytearray((folder / "pairs-000000.tar").read_bytes())
    tar[start + 512 : start + 600] = bytes(88)
    (folder / "pairs-000000.tar").write_bytes(tar)
    return shards


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A recipe like mini's, over a small model's towers."""
    path = tmp_path_factory.mktemp("towers") / "towers.safetensors"
    save_model(small_model(SENTENCE), path)
    return replace(CACHED, init_from=str(path))


@pytest.fixture(scope="module")
def whole(data: Shards, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over frozen towers that was not broken."""
    run = tmp_path_factory.mktemp("whole")
    train(config, data, run)
    return run


@pytest.fixture(scope="module")
def whole_pairs(data: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on photos that was not broken."""
    run = tmp_path_factory.mktemp("pairs")
    train(PAIRS, data, run)
    return run


def test_a_run_writes_a_line_a_step_and_a_model(whole: Path, config: TrainConfig) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 3 * (24 // 4) + 1))
    assert lines[-1]["lr"] == 0
    for line in lines:
        assert line["loss"] == pytest.approx(line["contrastive"] + line["superpixel"] + line["reconstruction"])
    first, last = (np.mean([line["reconstruction"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < first
    assert config.init_from
    before, after = load_model(config.init_from).state_dict(), weights(whole)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(TOWERS) for name in changed)
    assert {"image.grouping.centers", "image.projection", "logit_scale", "reconstruction.mask_token"} <= changed
    with Image.open(whole / "sheets" / "00000018.png") as sheet:
        assert sheet.size == (3 * (56 + 6), 6 * (56 + 6))
    assert len(list((whole / "checkpoints").iterdir())) == config.keep_checkpoints


@pytest.mark.slow
def test_training_on_photos(whole_pairs: Path) -> None:
    lines = metrics(whole_pairs)
    assert len(lines) == 2 * (48 // 4)  # each caption is a sample
    assert all(math.isfinite(value) for line in lines for value in line.values())
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < first
    assert lines[-1]["bad_samples"] == 2  # the damaged one, once an epoch


@pytest.mark.slow
def test_activations_computed_again_change_nothing(data: Shards, whole_pairs: Path, tmp_path: Path) -> None:
    train(replace(PAIRS, checkpoint_activations=True), data, tmp_path)
    for line, expected in zip(metrics(tmp_path), metrics(whole_pairs), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    assert weights(tmp_path).keys() == weights(whole_pairs).keys()


@pytest.mark.parametrize("kind", ["cached", "photos"])
def test_a_grouping_is_in_train_mode_in_steps_and_nowhere_else(
    kind: str, data: Shards, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its dropout would be missing in training, or disturb its start, the sheets and validation."""
    scenes = write_scenes(tmp_path / "scenes", 2, seed=0)
    recipe = config if kind == "cached" else replace(PAIRS, centers="k-means")
    recipe = replace(recipe, steps=3, validate_every=1, validation=str(scenes))
    group, step, within, seen = CenterGrouping.forward, loop.Run._step, [False], []

    def watched_step(*arguments: Any) -> dict[str, Any]:
        within[0] = True
        record = step(*arguments)
        within[0] = False
        return record

    def watched_group(grouping: CenterGrouping, *arguments: Any) -> Grouping:
        seen.append((within[0], {module.training for module in grouping.modules()}))
        return group(grouping, *arguments)

    monkeypatch.setattr(loop.Run, "_step", watched_step)
    monkeypatch.setattr(CenterGrouping, "forward", watched_group)
    train(recipe, data, tmp_path / "run")
    assert all(modes == {in_step} for in_step, modes in seen)
    changes = sum(one[0] != other[0] for one, other in pairwise(seen))
    assert changes >= 5, "three steps, and a look after each"


class Break(BaseException):
    """What a kill is, for a test that wants it at a certain place."""


@pytest.mark.parametrize("kind", ["cached", "photos"])
@pytest.mark.parametrize("place", ["step", "checkpoint"])
@pytest.mark.slow
def test_broken_anywhere_it_goes_on_and_ends_alike(
    kind: str,
    place: str,
    data: Shards,
    config: TrainConfig,
    whole: Path,
    whole_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken in its first step, later, and while a checkpoint is being written; it goes on with other workers."""
    expected, recipe = (whole, config) if kind == "cached" else (whole_pairs, PAIRS)
    if kind == "cached":
        shutil.copytree(whole / "features", tmp_path / "features")
    owner, name = (loop.Run, "_step") if place == "step" else (torch, "save")
    real, calls, at = getattr(owner, name), [], [1, 4, 5]

    def breaking(*args, **kwargs):
        calls.append(1)
        if at and len(calls) == at[0]:
            if place == "checkpoint":
                args[1].write_bytes(b"half a file")
            raise Break
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, breaking)
    for workers in (0, 0, 1):
        with pytest.raises(Break):
            train(replace(recipe, workers=workers), data, tmp_path)
        calls.clear()
        at.pop(0)
        assert not (tmp_path / "model.safetensors").exists()
    train(recipe, data, tmp_path)
    assert_same_run(tmp_path, expected)


def test_a_run_with_another_recipe_is_refused(data: Shards, config: TrainConfig, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"lr 0\.002 -> 0\.1"):
        train(replace(config, lr=0.1), data, whole)


def test_too_few_photos_and_too_many_bad_ones(data: Shards, config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="less than one batch of 64"):
        train(replace(config, batch=64), data, tmp_path / "a")
    with pytest.raises(ValueError, match="49 captions are less than one batch of 64"):
        train(replace(PAIRS, batch=64), data, tmp_path / "b")
    bad = tmp_path / "bad"
    shutil.copytree(data.folder, bad)
    (bad / "pairs-000000.tar").write_bytes(bytes((bad / "pairs-000000.tar").stat().st_size))
    with pytest.raises(ValueError, match="none of the 25 photos of a block can be read"):
        train(config, Shards(bad), tmp_path / "c")
    with pytest.raises(ValueError, match="no photo can be read"):
        train(PAIRS, Shards(bad), tmp_path / "d")


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
    cached = combine_parts(model.parts_from_patches(patches, visible, pixels, text, superpixels.flatten(1), noise))
    assert torch.equal(plain.total, cached.total)

    part = combine_parts(
        model.parts_from_patches(patches, visible[:2], pixels[:2], text, superpixels.flatten(1), noise)
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
    crops = cache_features(config.init_from, data, whole / "features", crops=2, reduction="majority", seed=0)
    words = [["a square"], *([] for _ in captions[1:])]
    texts = {text: torch.rand(64) for own in (*captions, *words) for text in own}
    known = {photo[p].tobytes() for crop in crops for block in crop for photo in block.patches for p in range(16)}
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
    (blocks,) = cache_features(config.init_from, data, tmp_path, crops=1, small=True, reduction="majority", seed=0)
    model = load(config.init_from, "cpu").to(torch.bfloat16)
    block, half = blocks[0], model.config.image.side // 2
    assert block.small is not None and block.small.shape == (len(block.rows), 4, 64)
    small = [np.asarray(Image.fromarray(crop).resize((half, half), Image.Resampling.BICUBIC)) for crop in block.pixels]
    image = np.vstack([np.hstack(small[:2]), np.hstack(small[2:4])])
    patches = model.image.encode_patches(normalise(image[None]).bfloat16()).half().detach().numpy()[0].reshape(4, 4, 64)
    for photo, (row, column) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        expected = patches[row : row + 2, column : column + 2].reshape(4, 64)
        np.testing.assert_allclose(block.small[photo], expected, atol=0.1)

    captions = read_captions(data)
    texts = {caption: torch.rand(64) for own in captions for caption in own}
    words: list[list[str]] = [[] for _ in captions]
    for photos, kind in ((2, block.patches), (4, block.small)):
        known = {patch.tobytes() for own in kind for patch in own}
        mixed = replace(config, batch=4, cache=replace(CACHE, crops=1, mosaics=(photos,), half_size_prob=1.0))
        stream = CachedStream([blocks], captions, words, texts, mixed, 4, rank=0, world=1, device=torch.device("cpu"))
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
            str(tmp_path / "odd.safetensors"),
            data,
            tmp_path / "features",
            crops=1,
            small=True,
            reduction="majority",
            seed=0,
        )
    assert not (tmp_path / "features").exists()


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
            start_centers(model, patches.numpy(), 0)
        hard = model.image.grouping(patches).hard
        alike = torch.einsum("bcp,bpk->bck", hard, F.one_hot(kind, 4).float())
        purity.append(float(alike.amax(dim=-1).sum() / alike.sum()))
    assert purity[0] < 0.9 < 0.99 < purity[1]


@pytest.mark.slow
def test_steps_without_a_finite_loss_are_skipped_and_ten_in_a_row_stop_the_run(
    data: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.backward, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        losses = real(*args, **kwargs)
        return replace(losses, contrastive=losses.contrastive * math.nan) if len(calls) % 3 == 0 else losses

    monkeypatch.setattr(loop, "backward", sometimes)
    train(replace(PAIRS, steps=8), data, tmp_path / "a")
    lines = metrics(tmp_path / "a")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert lines[2]["loss"] is None and lines[3]["loss"] is not None
    monkeypatch.setattr(loop, "backward", real)
    with pytest.raises(FloatingPointError, match="10 steps in a row had no finite loss"):
        train(replace(PAIRS, lr=math.inf), data, tmp_path / "b")
    assert len(metrics(tmp_path / "b")) < 15


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint_does_not_stop_the_run(
    data: Shards, whole_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = torch.save, []

    def full(value, file):
        calls.append(1)
        real(value, file)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    train(PAIRS, data, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000003.pt"]
    assert "No space left on device" in caplog.text and "the last one is kept" in caplog.text
    monkeypatch.undo()
    assert_same_run(tmp_path, whole_pairs)


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(data: Shards, whole_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_pairs / "checkpoints", tmp_path / "checkpoints")
    wide = replace(PAIRS, model=replace(SENTENCE, image=replace(SENTENCE.image, width=128)))
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        train(wide, data, tmp_path)


@pytest.mark.slow
def test_sigterm_saves_and_stops(
    data: Shards, whole_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Run._step

    def step(self, batch, number, steps):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, number, steps)

    monkeypatch.setattr(loop.Run, "_step", step)
    with pytest.raises(loop.Stopped, match="stopped at step 5 of 24"):
        train(PAIRS, data, tmp_path)
    assert (tmp_path / "checkpoints" / "00000005.pt").exists()
    monkeypatch.undo()
    train(PAIRS, data, tmp_path)
    assert_same_run(tmp_path, whole_pairs)


def test_metrics_are_cut_at_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    files.cut_metrics(file, 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bits(data: Shards, tmp_path: Path) -> None:
    """SIGKILL, also before the first checkpoint; the command itself, and again, and again."""
    command = ["train", "debug", "--data", str(data.folder), "--steps", "12", "--batch", "4", "--save-every", "2"]
    command += ["--validate-every", "100", "--trackers", "--workers", "1", "--out"]
    run_script("-m", "segclip", *command, str(tmp_path / "whole"))
    generator, run, kills = random.Random(0), tmp_path / "killed", 0
    for lines in (0, *sorted(generator.sample(range(1, 10), 3))):  # of metrics, at which it is killed
        process = subprocess.Popen([sys.executable, "-m", "segclip", *command, str(run)], stderr=subprocess.DEVNULL)
        file = run / "metrics.jsonl" if lines else run
        while process.poll() is None and not (file.exists() and (not lines or file.read_bytes().count(b"\n") >= lines)):
            time.sleep(0.02 * generator.random())
        kills += process.poll() is None
        process.kill()
        process.wait()
    run_script("-m", "segclip", *command, str(tmp_path / "killed"))
    assert kills
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_train_command(
    source: Path,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("segclip.cli.RECIPES", {"mini": lambda: replace(config, cache=replace(CACHE, crops=1))})
    argv = ["train", "mini", "--data", str(source), "--out", str(tmp_path / "run"), "--steps", "2"]
    assert main(argv) == 0
    assert len(metrics(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert main(["train", "--resume", str(tmp_path / "run"), "--workers", "1"]) == 0
    assert main([*argv, "--lr", "0.5"]) == 2
    assert "lr 0.002 -> 0.5" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "no recipe of a run" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "other", "--data", str(source), "--out", str(tmp_path / "x")]) == 2
    assert "recipe 'other'; known are mini" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "mini", "--out", str(tmp_path / "x")]) == 2
    assert "no data given" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "mini", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "no such file or folder" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "mini", "--data", "http://127.0.0.1:9/x", "--out", str(tmp_path / "x")]) == 2
    assert "cannot be fetched" in " ".join(capsys.readouterr().err.split())
    argv[3:6] = [str(tmp_path / "run" / "shards"), "--out", str(tmp_path / "again")]
    assert main(argv) == 0  # shards are taken as they are
    assert not (tmp_path / "again" / "shards").exists()


def test_what_can_be_changed_over_weights_is_trained_and_all_else_refused(
    data: Shards,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("segclip.cli.RECIPES", {"mini": lambda: config, "paper": lambda: PAIRS})
    place = ["--data", str(data.folder), "--steps", "2", "--out"]
    assert main(["train", "mini", "--model.centers", "12", *place, str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run")["image.grouping.centers"].shape == (12, 64)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert recipe["model"] == asdict(replace(SENTENCE, centers=12))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0

    path = tmp_path / "clip.safetensors"
    save_model(small_model(CLIP), path)
    for options, why in (
        (["--model.embed", "32"], f"model.embed 32; the weights of init_from, {path}, have 64"),
        (["--model.image.patch", "8"], "model.image.patch 8; the weights of init_from"),
        (["--model.decoder-layers", "2"], "over weights only centers can be changed: leave it out"),
    ):
        capsys.readouterr()
        assert main(["train", "paper", "--init-from", str(path), *options, *place, str(tmp_path / "x")]) == 2
        err = capsys.readouterr().err
        assert why in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()
    assert main(["train", "mini", "--model.embed", "32", *place, str(tmp_path / "x")]) == 2
    assert "embed 32 must equal its width 64" in " ".join(capsys.readouterr().err.split())


def test_another_number_of_centers_keeps_all_else_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_model(small_model(CLIP), path)
    config = resolve(TrainConfig(init_from=str(path), model=replace(CLIP, centers=6)))
    before, after = load_model(path).state_dict(), start_model(config).state_dict()
    anew = {name for name in before if not torch.equal(before[name], after[name])}
    assert anew == {"image.grouping.centers", "reconstruction.unpool.weight", "reconstruction.unpool.bias"}
    assert after["image.grouping.centers"].shape == (6, 64) and after["reconstruction.unpool.weight"].shape == (6, 6)


def test_soft_targets_and_what_else_is_swept_reach_training_on_photos(data: Shards, tmp_path: Path) -> None:
    def first_step(name: str, **changes) -> dict[str, float]:
        train(replace(PAIRS, steps=2, superpixel_loss="one-softmax", **changes), data, tmp_path / name)
        return metrics(tmp_path / name)[0]

    plain = first_step("plain")
    assert first_step("soft", soft_target_scale=2.0)["contrastive"] != plain["contrastive"]
    assert first_step("smooth", label_smoothing=0.3)["superpixel"] < plain["superpixel"]
    assert first_step("crops", crop_scale=(0.1, 0.2))["reconstruction"] != plain["reconstruction"]


def test_a_run_of_the_first_version_goes_on(data: Shards, config: TrainConfig, whole: Path, tmp_path: Path) -> None:
    """Its recipe.json has former names, and the paper's model whatever was trained."""
    run = shutil.copytree(whole, tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    raw = recipe["recipe"]
    for new, old in FORMER.items():
        raw[old] = raw.pop(new)
    raw["cache"] = {FORMER_CACHE.get(name, name): value for name, value in raw["cache"].items()}
    raw["cache"]["likeness"] = raw.pop("soft_target_scale")
    raw["model"] = asdict(ModelConfig())
    for name in ("betas", "eps", "label_smoothing", "crop_scale"):
        del raw[name]
    (run / "recipe.json").write_text(json.dumps(recipe))
    (run / "model.safetensors").unlink()
    found, _ = read_recipe(run)
    assert found == config  # whose model is that of its weights
    train(found, data, run)
    assert_same_run(run, whole)
    assert json.loads((run / "recipe.json").read_text())["recipe"] == json.loads(resolve(config).to_json())


def test_regions_start_pointing_to_the_captions_of_their_photo() -> None:
    """Photos of two kinds of patches, and a caption for each kind."""
    torch.manual_seed(0)
    directions, captions = torch.randn(2, 64), F.normalize(torch.randn(2, 64), dim=-1)
    kind = torch.arange(80) % 2
    patches = directions[kind][:, None] + 0.3 * torch.randn(80, 16, 64)
    model = small_model(SENTENCE)
    start_centers(model, patches.numpy(), 0)
    start_projection(model, zip(patches[:40].numpy(), captions[kind[:40]], strict=True))
    grouping = model.image.grouping(patches[40:])
    _, embedded = model.image.embed_regions(grouping.regions)
    likeness = F.normalize(embedded, dim=-1) @ F.normalize(captions - captions.mean(dim=0), dim=-1).T
    full = grouping.hard.sum(dim=-1) > 0  # regions that have patches
    assert likeness[full][:, 0].max() > 0.9
    assert (likeness.argmax(dim=-1) == kind[40:, None])[full].float().mean() > 0.95
