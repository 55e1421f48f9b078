"""Models go to the Hugging Face hub and come back; a local server plays the hub."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_server import run_with_hub, serve
from safetensors.torch import load_file, save_file

from segclip.checkpoints.loading import load
from segclip.checkpoints.native import CheckpointError, save_model
from segclip.model.segclip import SegCLIP


def assert_same(model: SegCLIP, expected: SegCLIP) -> None:
    assert model.config == expected.config
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.fixture
def folder(tiny: SegCLIP, tmp_path: Path) -> Path:
    tiny.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_saved_folders_load_again(tiny: SegCLIP, folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    for model in (SegCLIP.from_pretrained(folder), load(folder, "cpu"), load(folder / "model.safetensors", "cpu")):
        assert_same(model, tiny)


def test_folders_of_before_the_mixin_load_too(tiny: SegCLIP, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "model.safetensors")
    assert_same(load(tmp_path, "cpu"), tiny)
    (tmp_path / "config.json").write_text(tiny.config.to_json() + "\n")
    for model in (SegCLIP.from_pretrained(tmp_path), load(tmp_path, "cpu")):
        assert_same(model, tiny)


def test_a_missing_tensor_is_told(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["image.norm_post.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing, 0 extra, .* such as image\.norm_post\.bias"):
        SegCLIP.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"missing: 1 \(image\.norm_post\.bias"):
        load(folder)


@pytest.mark.parametrize("change", [{"unheard_of": 1}, {"image": {"unheard_of": 1}}])
def test_a_configuration_of_another_version(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for read in (SegCLIP.from_pretrained, load):
        with pytest.raises(ValueError, match="unheard_of"):
            read(folder)


def test_a_configuration_asks_for_no_more_than_the_file_has(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text"]["vocabulary"] = 1 << 24  # of width 64: 4 GiB
    (folder / "config.json").write_text(json.dumps(config))
    for options in ({}, {"strict": False}):
        with pytest.raises(ValueError, match=r"not those that config\.json asks for: 0 missing, 0 extra, 1 of another"):
            SegCLIP.from_pretrained(folder, **options)


@pytest.mark.parametrize("content", ["5", '{"image": 5}', "[" * 9999, "null"])
def test_a_configuration_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError):
        SegCLIP.from_pretrained(folder)


def test_only_who_asks_for_it_gets_what_the_file_lacks_as_it_is_drawn(folder: Path, tiny: SegCLIP) -> None:
    state = load_file(folder / "model.safetensors")
    del state["image.norm_post.bias"]
    save_file(state, folder / "model.safetensors")
    found = SegCLIP.from_pretrained(folder, strict=False).state_dict()
    assert found.pop("image.norm_post.bias").shape == tiny.state_dict()["image.norm_post.bias"].shape
    assert all(torch.equal(tensor, tiny.state_dict()[name]) for name, tensor in found.items())


def test_weights_without_their_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* put the config\.json"):
        load(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing here"):
        SegCLIP.from_pretrained(tmp_path / "nothing here")


PROGRAM = """
from segclip.checkpoints import load
from segclip.model.segclip import SegCLIP
config = SegCLIP.from_pretrained("org/ours").config
print(load("org/ours").config == load("org/before").config == config)
print(load("org/theirs").config.image.width)
print(load("org/ours").push_to_hub("org/pushed", private=True, token="hf_secret"))
print(load("org/pushed").config == SegCLIP.from_pretrained("org/pushed").config == config)
for name in ("org/empty", "org/missing"):
    try:
        load(name)
    except ValueError as error:
        print(error)
"""


def test_hub_models(tiny: SegCLIP, tiny_bin: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "org"
    (hub / "theirs").mkdir(parents=True)
    (hub / "empty").mkdir()
    save_file({"unused": torch.zeros(1)}, hub / "empty" / "other.safetensors")
    tiny.save_pretrained(hub / "ours")
    save_model(tiny, hub / "before" / "model.safetensors")
    shutil.copy(tiny_bin, hub / "theirs" / "pytorch_model.bin")

    with serve(tmp_path / "hub") as server:
        lines = run_with_hub(PROGRAM, f"http://127.0.0.1:{server.server_port}", tmp_path / "home")
    same, width, commit, same_again, empty, missing = lines
    assert same == same_again == "True"
    assert width == "128"
    assert commit.endswith(("/commit/1", "/org/pushed/tree/main/"))  # the latter before huggingface-hub 1.0
    assert sorted(os.listdir(hub / "pushed")) == ["README.md", "config.json", "model.safetensors"]
    assert empty.startswith(
        "org/empty: cannot be fetched from the Hugging Face hub (it has none of model.safetensors, "
    )
    assert missing.startswith("org/missing: cannot be fetched") and "RepositoryNotFound" in missing
