"""A broken run goes on, and ends with the same bits."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.small_model import SENTENCE
from helpers.small_runs import PAIRS, assert_same_run, run_script

from segclip.config import ModelConfig
from segclip.data.shards import Shards
from segclip.model.grouping import GROUPINGS, CenterGrouping, Grouping
from segclip.train import loop
from segclip.train import run_files as files
from segclip.train.config import TrainConfig
from segclip.train.resolve import resolve
from segclip.train.run import train
from segclip.train.run_files import read_recipe
from segclip.utils.failures import Stopped
from segclip.utils.locks import only_one_run

FORMER = {"init_from": "start", "init_centers": "centers", "max_grad_norm": "clip", "keep_checkpoints": "keep"}


class Break(BaseException):
    """What a kill is, for a test that wants it at a certain moment."""


@pytest.mark.parametrize("kind", ["cached", "photos"])
@pytest.mark.parametrize("moment", ["step", "checkpoint"])
@pytest.mark.slow
def test_broken_anywhere_it_goes_on_and_ends_alike(
    kind: str,
    moment: str,
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
    owner, name = (loop.Run, "step") if moment == "step" else (torch, "save")
    real, calls, at = getattr(owner, name), [], [1, 4, 5]

    def breaking(*args, **kwargs):
        calls.append(1)
        if at and len(calls) == at[0]:
            if moment == "checkpoint":
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


class Dropping(CenterGrouping):
    """A grouping with a dropout, of the kind that somebody adds."""

    def forward(self, patches: torch.Tensor, gumbel: torch.Tensor | None = None) -> Grouping:
        return super().forward(F.dropout(patches, 0.2, self.training), gumbel)


def test_what_a_module_draws_by_itself_is_drawn_again(
    data: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GROUPINGS, "dropping", Dropping)
    recipe = replace(PAIRS, model=replace(SENTENCE, grouping="dropping"), steps=8)
    train(recipe, data, tmp_path / "whole")
    real = loop.Run.step

    def breaking(self, batch, step, steps):
        if step == 5:
            raise Break
        return real(self, batch, step, steps)

    with monkeypatch.context() as broken, pytest.raises(Break):
        broken.setattr(loop.Run, "step", breaking)
        train(recipe, data, tmp_path / "broken")
    torch.manual_seed(123)  # as another process would have it
    train(recipe, data, tmp_path / "broken")
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_saves_and_stops(
    data: Shards, whole_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Run.step

    def step(self, batch, number, steps):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, number, steps)

    monkeypatch.setattr(loop.Run, "step", step)
    with pytest.raises(Stopped, match="stopped at step 5 of 24"):
        train(PAIRS, data, tmp_path)
    assert (tmp_path / "checkpoints" / "00000005.pt").exists()
    monkeypatch.undo()
    train(PAIRS, data, tmp_path)
    assert_same_run(tmp_path, whole_pairs)


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


def test_a_run_with_another_recipe_is_refused(data: Shards, config: TrainConfig, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"lr 0\.002 -> 0\.1"):
        train(replace(config, lr=0.1), data, whole)


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(data: Shards, whole_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_pairs / "checkpoints", tmp_path / "checkpoints")
    wide = replace(PAIRS, model=replace(SENTENCE, image=replace(SENTENCE.image, width=128)))
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        train(wide, data, tmp_path)


@pytest.mark.slow
def test_a_run_of_the_first_version_goes_on(data: Shards, whole_pairs: Path, tmp_path: Path) -> None:
    """Its recipe.json and its checkpoints have former names."""
    run = shutil.copytree(whole_pairs, tmp_path / "run")
    recipe = json.loads((run / "recipe.json").read_text())
    raw = recipe["recipe"]
    for new, old in FORMER.items():
        raw[old] = raw.pop(new)
    for name in ("betas", "eps", "label_smoothing", "crop_scale", "soft_target_scale", "words_power"):
        del raw[name]
    (run / "recipe.json").write_text(json.dumps(recipe))
    (run / "model.safetensors").unlink()
    (run / "checkpoints" / "00000024.pt").unlink()
    checkpoint = torch.load(run / "checkpoints" / "00000021.pt", weights_only=True)
    checkpoint["model"] = {name.replace("image.tower.", "image."): t for name, t in checkpoint["model"].items()}
    torch.save(checkpoint, run / "checkpoints" / "00000021.pt")
    found, _ = read_recipe(run)
    assert found == resolve(PAIRS)
    train(found, data, run)
    assert_same_run(run, whole_pairs)


def test_a_recipe_over_weights_of_the_first_version_has_their_model(config: TrainConfig) -> None:
    """It named the paper's model whatever was trained."""
    raw = json.loads(config.to_json()) | {"model": asdict(ModelConfig()), "cache": None}
    for new, old in FORMER.items():
        raw[old] = raw.pop(new)
    assert TrainConfig.from_json(json.dumps(raw)) == replace(config, cache=None)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("mosaics", [2, 4], "mosaics"),
        ("small", 0.5, "photos at half size"),
        ("half_size_prob", 0.5, "photos at half size"),
        ("words", True, "words in place of captions"),
        ("caption_words", True, "words in place of captions"),
    ],
)
def test_a_run_that_learned_from_what_is_gone_does_not_go_on(
    field: str, value: object, what: str, config: TrainConfig, tmp_path: Path
) -> None:
    recipe = json.loads(config.to_json())
    recipe["cache"][field] = value
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe, "data": "shards"}))
    why = rf"cache\.{field}: this run learned from {what}, which this version no longer has; start anew in a new folder"
    with pytest.raises(ValueError, match=why):
        read_recipe(tmp_path)


def test_metrics_are_cut_at_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    files.cut_metrics(file, 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("line", [b'{"st', b"\xff\x00", b"[]", b'{"loss": 1}', b'{"step": "2"}', b""])
def test_damaged_metrics_are_said_and_left_out(line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    files.cut_metrics(file, 3)
    assert file.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
    assert "metrics.jsonl: 1 of the lines of 3 steps are missing or damaged" in caplog.text


def change(**fields: object) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        state = torch.load(file, weights_only=True) | fields
        torch.save({name: value for name, value in state.items() if value is not ...}, file)

    return damage


def without_a_moment(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    del next(iter(state["optimiser"]["state"].values()))["exp_avg"]
    torch.save(state, file)


def with_nan(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    state["model"]["model.image.projection"][3, 3] = float("nan")
    torch.save(state, file)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    largest = max(torch.load(file, weights_only=True)["model"].values(), key=torch.numel)
    data[data.index(largest.numpy().tobytes()) + 5] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1000]), "BadZipFile"),
        (lambda file: file.write_bytes(b""), "BadZipFile"),
        (flip_a_bit, "ValueError: wrong checksum of"),
        (with_nan, "model.image.projection is not finite"),
        (without_a_moment, "moments that not all parameters have"),
        (change(step=20), "it is of step 20"),
        (change(step=...), "parts are missing or of another kind: 'step'"),
        (change(counts={"worse": 0}), "a checkpoint of another model"),
        (change(optimiser=...), "parts are missing or of another kind: 'optimiser'"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken_up(
    damage: Callable[[Path], None],
    why: str,
    data: Shards,
    whole_pairs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = shutil.copytree(whole_pairs, tmp_path / "run")
    damage(run / "checkpoints/00000024.pt")
    with (run / "metrics.jsonl").open("ab") as lines:
        lines.write(b'{"step": 2')
    (run / "model.safetensors").unlink()
    train(PAIRS, data, run)
    assert_same_run(run, whole_pairs)
    assert f"00000024.pt is damaged ({why}" in caplog.text and "goes on from" in caplog.text
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["00000021.pt", "00000024.pt", "00000024.pt.damaged"]


def test_a_run_without_a_whole_checkpoint_says_so(data: Shards, whole_pairs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole_pairs, tmp_path / "run")
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"")
    why = r"none of its checkpoints can be gone on from \(00000024\.pt: .*; 00000021\.pt: .*\); give another folder, or"
    with pytest.raises(ValueError, match=why):
        train(PAIRS, data, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["00000021.pt", "00000024.pt"]
    (run / "recipe.json").write_text('{"recipe": ')
    with pytest.raises(ValueError, match=r"recipe\.json: no recipe of a run"):
        train(PAIRS, data, run)


def test_a_second_trainer_in_one_folder_is_refused(
    data: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segclip.train.run.READERS_LEAVE", 0.1)
    with only_one_run(tmp_path / "run"), pytest.raises(ValueError, match="run: another run is writing to this folder"):
        train(PAIRS, data, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


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
