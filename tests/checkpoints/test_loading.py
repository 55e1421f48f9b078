"""Every format of weights gives the same model, and `convert` writes ours."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State, to_transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from segclip.checkpoints.clip_weights import add_centers
from segclip.checkpoints.loading import convert, load
from segclip.checkpoints.native import CheckpointError, load_model, save_model
from segclip.checkpoints.torchscript import read_torchscript
from segclip.model.segclip import SegCLIP


def assert_same_towers(clip: SegCLIP, tiny: SegCLIP) -> None:
    assert (clip.config.grouping, clip.config.head, clip.reconstruction) == ("patches", "naclip", None)
    model = add_centers(clip)
    assert model.config == tiny.config
    expected = tiny.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all()
        if not name.startswith(("image.grouping.", "reconstruction.")):
            assert torch.equal(tensor, expected[name]), name


def test_the_authors_file_gives_every_size(tiny: SegCLIP, authors: State) -> None:
    config = tiny.config
    assert (config.image.width, config.image.patch, config.image.side, config.image.position_grid) == (128, 16, 96, 6)
    assert (config.image.trunk_layers, config.image.region_layers, config.decoder_layers) == (10, 2, 3)
    text = config.text
    assert (text.width, text.layers, text.heads, text.context, text.vocabulary) == (64, 2, 1, 77, 512)
    assert (config.embed, config.centers) == (64, 8)
    assert sum(p.numel() for p in tiny.parameters()) == sum(
        tensor.numel() for name, tensor in authors.items() if not name.endswith("decoder_pos_embed")
    )
    assert all(p.dtype == torch.float32 and p.requires_grad for p in tiny.parameters())
    assert not tiny.training


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    ],
)
def test_training_checkpoints_of_the_authors_code(
    tiny: SegCLIP, authors: State, tmp_path: Path, wrap: Callable[[State], dict[str, Any]]
) -> None:
    torch.save(wrap(authors), tmp_path / "model.7")
    assert_same(load(tmp_path / "model.7", "cpu"), tiny)


def assert_same(model: SegCLIP, expected: SegCLIP) -> None:
    assert model.config == expected.config
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".jpg", ""])
def test_the_suffix_does_not_matter(tiny: SegCLIP, tiny_bin: Path, tmp_path: Path, suffix: str) -> None:
    shutil.copy(tiny_bin, tmp_path / f"weights{suffix}")
    save_model(tiny, tmp_path / "ours.bin")
    assert_same(load(tmp_path / f"weights{suffix}", "cpu"), tiny)
    assert_same(load(str(tmp_path / "ours.bin"), "cpu"), tiny)


def test_files_of_old_torch(tiny: SegCLIP, authors: State, tmp_path: Path) -> None:
    torch.save(authors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path / "old.bin", "cpu"), tiny)


def test_openai_state_dict(tiny: SegCLIP, openai: State, tmp_path: Path) -> None:
    torch.save(openai, tmp_path / "clip.pt")
    model = load(tmp_path / "clip.pt", "cpu")
    assert_same_towers(model, tiny)
    assert not model.training
    assert add_centers(model).image.grouping.centers.std().item() == pytest.approx(0.02, rel=0.2)


def test_openai_archive(tiny: SegCLIP, archive: Path) -> None:
    assert_same_towers(load(archive, "cpu"), tiny)


def test_archive_without_running_it(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an archive's program must not be loaded")

    monkeypatch.setattr(torch.jit, "load", refuse)
    load(archive)


class Awkward(nn.Module):
    """What TorchScript archives can hold besides plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3).half()
        self.transposed = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
        self.part = nn.Parameter(self.transposed.detach()[1:, 1:])
        self.tied = self.linear
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("brain", torch.ones(2, 2, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.empty(0, 3))
        self.sizes = [1, 2]
        self.name = "awkward"

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.half()).float() + self.part.sum() + self.transposed.sum() + torch.ones(3)


@pytest.mark.parametrize("compile_module", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 3))])
def test_archives_hold_views_shared_storages_and_all_types(
    tmp_path: Path, compile_module: Callable[[nn.Module], torch.jit.ScriptModule]
) -> None:
    module = Awkward()
    compile_module(module).save(tmp_path / "awkward.pt")
    found, expected = read_torchscript(tmp_path / "awkward.pt"), module.state_dict()
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert found["part"].untyped_storage().data_ptr() == found["transposed"].untyped_storage().data_ptr()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_openai_and_transformers_agree(tiny: SegCLIP, openai: State, tmp_path: Path, suffix: str) -> None:
    """transformers' names and layout, as its own conversion script makes them of OpenAI's."""
    state = to_transformers(openai)
    if suffix == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same_towers(load(tmp_path, "cpu"), tiny)
    assert_same_towers(load(next(tmp_path.iterdir()), "cpu"), tiny)


def test_convert_writes_ours(tiny: SegCLIP, tiny_bin: Path, tmp_path: Path) -> None:
    convert(tiny_bin, tmp_path / "new" / "ours.safetensors")
    assert_same(load_model(tmp_path / "new" / "ours.safetensors"), tiny)


def test_convert_never_overwrites_its_source(tiny_bin: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bin"
    shutil.copy(tiny_bin, copy)
    with pytest.raises(CheckpointError, match="never overwritten"):
        convert(copy, tmp_path / "." / "copy.bin")
    assert copy.read_bytes() == tiny_bin.read_bytes()


def test_convert_to_where_nothing_can_be_written(tiny_bin: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder; name the file"):
        convert(tiny_bin, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(tiny_bin, tmp_path / "file" / "ours.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minni", r"unknown model 'minni' \(did you mean mini\?\); known are mini, vit-b16"),
        ("ViT-B/16.pt", "no such file; give an existing file or folder, a hub id org/name, or one of mini, vit-b16"),
        ("./nowhere/weights", "no such file"),
        ("", "unknown model ''"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(name)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"a folder without model\.safetensors or open_clip_model\.safetensors or"
    ):
        load(tmp_path)
