"""`segclip train`."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.small_model import ADAPTED, CLIP, small_model
from helpers.small_runs import CACHE, PAIRS, metrics, weights

from segclip.checkpoints.native import save_model
from segclip.cli import main
from segclip.data.shards import Shards
from segclip.train.config import TrainConfig


def test_train_command(
    source: Path,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(config, cache=replace(CACHE, crops=1))
    monkeypatch.setattr("segclip.commands.train.RECIPES", {"mini": lambda: recipe})
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
    monkeypatch.setattr("segclip.commands.train.RECIPES", {"mini": lambda: config, "paper": lambda: PAIRS})
    rest = ["--data", str(data.folder), "--steps", "2", "--out"]
    assert main(["train", "mini", "--model.centers", "12", *rest, str(tmp_path / "run")]) == 0
    assert weights(tmp_path / "run")["image.grouping.centers"].shape == (12, 64)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert recipe["model"] == asdict(replace(ADAPTED, centers=12))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0

    path = tmp_path / "clip.safetensors"
    save_model(small_model(CLIP), path)
    for options, why in (
        (["--model.embed", "32"], f"model.embed 32; the weights of init_from, {path}, have 64"),
        (["--model.image.patch", "8"], "model.image.patch 8; the weights of init_from"),
        (["--model.decoder-layers", "2"], "model.decoder_layers 2; the weights"),
    ):
        capsys.readouterr()
        assert main(["train", "paper", "--init-from", str(path), *options, *rest, str(tmp_path / "x")]) == 2
        err = capsys.readouterr().err
        assert why in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()
    assert main(["train", "mini", "--model.embed", "32", *rest, str(tmp_path / "x")]) == 2
    assert "model.embed 32; the weights" in " ".join(capsys.readouterr().err.split())
