"""A run: what it writes, what it learns, what it refuses, what it bears."""

import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_runs import PAIRS, metrics, weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segclip.checkpoints.native import load_model
from segclip.data.scenes import write_scenes
from segclip.data.shards import Shards
from segclip.model.grouping import CenterGrouping, Grouping
from segclip.train import loop
from segclip.train.config import TrainConfig
from segclip.train.recipes import TOWERS
from segclip.train.run import train


def test_a_run_writes_a_line_a_step_and_a_model(whole: Path, config: TrainConfig) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 3 * (24 // 4) + 1))
    assert lines[-1]["lr"] == 0
    for line in lines:
        assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in config.losses.items()))
        assert all(line[name] > 0 for name in ("words", "multiple_instance", "presence"))
    # It is 0 where all photos of a batch hold a word.
    assert all(line["retrieval"] >= 0 for line in lines) and any(line["retrieval"] > 0 for line in lines)
    first, last = (np.mean([line["reconstruction"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < first
    assert config.init_from
    before, after = load_model(config.init_from).state_dict(), weights(whole)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(TOWERS) for name in changed)
    assert {"image.grouping.centers", "image.projection", "logit_scale", "reconstruction.mask_token"} <= changed
    assert {"text_adapter.fc1.weight", "text_adapter.fc2.weight"} <= changed
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
    recipe = config if kind == "cached" else replace(PAIRS, init_centers="k-means")
    recipe = replace(recipe, steps=3, validate_every=1, validation=str(scenes))
    group, step, within, seen = CenterGrouping.forward, loop.Run.step, [False], []

    def watched_step(*arguments: Any) -> dict[str, Any]:
        within[0] = True
        record = step(*arguments)
        within[0] = False
        return record

    def watched_group(grouping: CenterGrouping, *arguments: Any) -> Grouping:
        seen.append((within[0], {module.training for module in grouping.modules()}))
        return group(grouping, *arguments)

    monkeypatch.setattr(loop.Run, "step", watched_step)
    monkeypatch.setattr(CenterGrouping, "forward", watched_group)
    train(recipe, data, tmp_path / "run")
    assert not [one for one in seen if one[1] != {one[0]}]
    changes = sum(one[0] != other[0] for one, other in pairwise(seen))
    assert changes >= 5, "three steps, and a validation after each"


def test_losses_with_words_need_cached_features(data: Shards, tmp_path: Path) -> None:
    recipe = replace(PAIRS, losses={"contrastive": 1.0, "words": 1.0, "presence": 0.5, "multiple_instance": 0.0})
    why = (
        r"the loss words needs the words of captions, .* cached features .*; .* leave words, presence out \(weight 0\)"
    )
    with pytest.raises(ValueError, match=why):
        train(recipe, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_too_few_photos_and_too_many_bad_ones(data: Shards, config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="less than one batch of 64"):
        train(replace(config, batch=64), data, tmp_path / "a")
    with pytest.raises(ValueError, match="49 captions are less than one batch of 64"):
        train(replace(PAIRS, batch=64), data, tmp_path / "b")
    bad = tmp_path / "bad"
    shutil.copytree(data.folder, bad)
    (bad / "pairs-000000.tar").write_bytes(bytes((bad / "pairs-000000.tar").stat().st_size))
    with pytest.raises(ValueError, match="none of the 25 photos of a chunk can be read"):
        train(config, Shards(bad), tmp_path / "c")
    with pytest.raises(ValueError, match="no photo can be read"):
        train(PAIRS, Shards(bad), tmp_path / "d")


@pytest.mark.slow
def test_steps_without_a_finite_loss_are_skipped_and_ten_in_a_row_stop_the_run(
    data: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.backward, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        losses = real(*args, **kwargs)
        nan = {"contrastive": losses.contrastive * math.nan}
        return replace(losses, terms=losses.terms | nan) if len(calls) % 3 == 0 else losses

    monkeypatch.setattr(loop, "backward", sometimes)
    train(replace(PAIRS, steps=8), data, tmp_path / "a")
    lines = metrics(tmp_path / "a")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert lines[2]["loss"] is None and lines[3]["loss"] is not None
    monkeypatch.setattr(loop, "backward", real)
    with pytest.raises(FloatingPointError, match="10 steps in a row had no finite loss"):
        train(replace(PAIRS, lr=1e38), data, tmp_path / "b")
    assert len(metrics(tmp_path / "b")) < 15


def test_soft_targets_and_what_else_is_swept_reach_training_on_photos(data: Shards, tmp_path: Path) -> None:
    def first_step(name: str, **changes) -> dict[str, float]:
        train(replace(PAIRS, steps=2, superpixel_loss="one-softmax", **changes), data, tmp_path / name)
        return metrics(tmp_path / name)[0]

    plain = first_step("plain")
    assert first_step("soft", soft_target_scale=2.0)["contrastive"] != plain["contrastive"]
    assert first_step("smooth", label_smoothing=0.3)["superpixel"] < plain["superpixel"]
    assert first_step("crops", crop_scale=(0.1, 0.2))["reconstruction"] != plain["reconstruction"]


def test_trackers_take_the_figures_too(data: Shards, tmp_path: Path) -> None:
    train(replace(PAIRS, steps=2, trackers=("tensorboard",)), data, tmp_path / "a")
    board = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(
        [m["loss"] for m in metrics(tmp_path / "a")]
    )
    with pytest.raises(ValueError, match="tracker 'wandb'; known are tensorboard"):
        train(replace(PAIRS, trackers=("wandb",)), data, tmp_path / "b")
    assert not (tmp_path / "b").exists()
