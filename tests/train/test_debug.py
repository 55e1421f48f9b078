"""`segclip train debug` learns to segment; each loss does its share; any number of processes gives the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pixels import normalise
from helpers.small_runs import metrics, run_script

from segclip.checkpoints.native import load_model
from segclip.cli import main
from segclip.data.scenes import make_scene, write_scenes
from segclip.data.shards import Shards
from segclip.data.superpixels import find_superpixels, patch_superpixels
from segclip.evaluate.datasets.folder import open_folder
from segclip.model.segclip import SegCLIP, combine_parts
from segclip.train import debug_data
from segclip.train.config import TrainConfig
from segclip.train.recipes import debug
from segclip.train.run import train
from segclip.train.validation import validate

ABLATED = 70  # steps of the runs without a loss, and of the one with all that they are held against


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command as a newcomer gives it."""
    folder = tmp_path_factory.mktemp("debug") / "run"
    assert main(["train", "debug", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_it_learns_to_segment(run: Path, tmp_path: Path) -> None:
    """Held-out scenes of a seed that nothing was chosen on, every pixel labelled, ten classes."""
    scenes = open_folder(write_scenes(tmp_path, 64, seed=2))
    torch.manual_seed(0)
    model = debug().model
    assert model and validate(SegCLIP(model).eval(), scenes) < 0.2
    assert validate(load_model(run / "model.safetensors"), scenes) > 0.6
    found = [line["miou"] for line in map(json.loads, (run / "metrics.jsonl").open()) if "miou" in line]
    best = validate(load_model(run / "best.safetensors"), open_folder(run / "data" / "held_out"))
    assert len(found) == 4 and max(found) == pytest.approx(best)


@pytest.mark.slow
def test_each_loss_ends_lower_than_without_it(run: Path, tmp_path: Path) -> None:
    config = replace(debug(), steps=ABLATED, validate_every=ABLATED)
    all_losses = losses_of(config, run, tmp_path / "all")
    for name in config.losses:
        others = {other: weight for other, weight in config.losses.items() if other != name}
        assert all_losses[name] < losses_of(replace(config, losses=others), run, tmp_path / name)[name], name


def losses_of(config: TrainConfig, run: Path, out: Path) -> dict[str, float]:
    """Train on the scenes of `run`; the losses on held-out scenes, with the same noise always."""
    model = load_model(train(config, Shards(run / "data" / "shards"), out))
    scenes = [make_scene(1, number) for number in range(64)]
    pixels = normalise(np.stack([scene.photo for scene in scenes]))
    ids = [patch_superpixels(find_superpixels(scene.photo, "opencv"), 8) for scene in scenes]
    texts = model.tokenize([scene.captions[0] for scene in scenes])
    torch.manual_seed(0)
    noise = model.draw_noise(pixels)
    with torch.no_grad():
        settings = config.loss_settings
        parts = model.parts(pixels, texts, torch.from_numpy(np.stack(ids)), noise, settings=settings)
        return {name: term.item() for name, term in combine_parts(parts, settings=settings).terms.items()}


@pytest.mark.slow
def test_two_processes_give_the_same(tmp_path: Path) -> None:
    shared = ["-m", "segclip", "train", "debug", "--steps", "8", "--validate-every", "8", "--trackers", "--out"]
    run_script(*shared, str(tmp_path / "one"))
    run_script(*shared, str(tmp_path / "two"), processes=2)
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-3)


def test_broken_off_while_it_prepares_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes that are whole are not written again: shards that were broken off know them by their dates."""
    monkeypatch.setattr(debug_data, "SCENES", 12)
    monkeypatch.setattr(debug_data, "HELD_OUT", 2)
    broken = {"left": 1}

    def prepare(*given: Any) -> Any:
        if broken["left"]:
            broken["left"] = 0
            raise KeyboardInterrupt
        return plain(*given)

    plain = debug_data.prepare
    monkeypatch.setattr(debug_data, "prepare", prepare)
    with pytest.raises(KeyboardInterrupt):
        debug_data.make_data(debug(), tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "scenes").rglob("*.png")}
    (tmp_path / "data" / "held_out" / "classes.json").unlink()
    _, shards = debug_data.make_data(debug(), tmp_path)
    assert len(shards) == 12 and (tmp_path / "data" / "held_out" / "classes.json").exists()
    assert written == {path: path.stat().st_mtime_ns for path in written}
