"""Our own file: what is saved is what is loaded, and a file that is not ours says what it is."""

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from segclip.checkpoints import native
from segclip.checkpoints.loading import load
from segclip.checkpoints.native import CheckpointError, load_model, save_model
from segclip.config import ImageConfig, ModelConfig, TextConfig
from segclip.export import export
from segclip.model.segclip import SegCLIP

DINO_CONFIG = ModelConfig(
    image=ImageConfig("dinov2", width=128, trunk_layers=2, region_layers=1, patch=14, side=56, position_grid=5),
    text=TextConfig("sentence", width=64, layers=1, heads=4, context=32, vocabulary=400),
    embed=64,
    centers=4,
    decoder_layers=1,
)


@pytest.fixture
def saved(tiny: SegCLIP, tmp_path: Path) -> Path:
    save_model(tiny, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    """The same file with something changed in its tensors or its metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(state, metadata)
    save_file(state, path, metadata)
    return path


def test_what_is_saved_is_loaded_again(tiny: SegCLIP, saved: Path) -> None:
    loaded = load_model(saved)
    assert loaded.config == tiny.config
    assert loaded.state_dict().keys() == tiny.state_dict().keys()
    found = loaded.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_file_of_version_1_is_read(eight_bit: bool, tmp_path: Path) -> None:
    """Its image tower had no name of its own; what is saved of it is of version 2."""
    model = SegCLIP(DINO_CONFIG)
    save_model(model, tmp_path / "m", eight_bit=eight_bit)
    # Cloned: before safetensors 0.8, writing a file anew writes through what was read of it.
    expected = {name: tensor.clone() for name, tensor in load_model(tmp_path / "m").state_dict().items()}

    def to_version_1(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        for name in list(state):
            state[name.replace("image.tower.", "image.")] = state.pop(name)
        metadata["format_version"] = "1"

    loaded = load_model(rewrite(tmp_path / "m", to_version_1))
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    save_model(loaded, tmp_path / "n")
    with safe_open(tmp_path / "n", "pt") as file:
        assert file.metadata()["format_version"] == "2" and "image.tower.class_token" in file.keys()  # noqa: SIM118


def test_a_file_that_names_no_adapter_is_read(saved: Path, tiny: SegCLIP) -> None:
    """As those written before there was one, whose regions had their center in them."""

    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["segclip_config"])
        del config["text"]["adapter"], config["center_in_region"]
        metadata["segclip_config"] = json.dumps(config)

    loaded = load_model(rewrite(saved, change))
    assert loaded.config == tiny.config and loaded.config.center_in_region and not loaded.config.text.adapter
    assert all(torch.equal(tensor, tiny.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_weights_of_0_1_go_into_a_model(tmp_path: Path) -> None:
    """As `from_pretrained` puts them there."""
    model, other = SegCLIP(DINO_CONFIG), SegCLIP(DINO_CONFIG)
    other.load_state_dict({name.replace("image.tower.", "image."): t for name, t in model.state_dict().items()})
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_loaded_models_evaluate_and_can_be_trained(saved: Path, golden: dict[str, Tensor]) -> None:
    loaded = load_model(saved)
    assert not loaded.training
    assert all(p.requires_grad and p.dtype == torch.float32 and not p.is_meta for p in loaded.parameters())
    assert not any(buffer.is_meta for buffer in loaded.buffers())
    before = saved.read_bytes()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.losses(golden["image"], golden["train_token_ids"]).total.backward()
    optimizer.step()
    assert saved.read_bytes() == before  # its tensors may lie in the file's memory map


def test_towers_of_the_other_kind_are_saved_too(tmp_path: Path) -> None:
    model = SegCLIP(DINO_CONFIG)
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.config == DINO_CONFIG
    found = loaded.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("config", [None, DINO_CONFIG])
def test_eight_bits_are_within_half_a_step(tiny: SegCLIP, tmp_path: Path, config: ModelConfig | None) -> None:
    model = SegCLIP(config) if config else tiny
    save_model(model, tmp_path / "full")
    save_model(model, tmp_path / "small", eight_bit=True)
    loaded = load_model(tmp_path / "small").state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.ndim < 2:
            torch.testing.assert_close(loaded[name], tensor, rtol=2**-11, atol=1e-7)  # float16
        else:
            step = tensor.flatten(1).abs().amax(dim=1, keepdim=True) / 127
            assert ((loaded[name] - tensor).flatten(1).abs() <= step * 0.5001).all(), name
    assert (tmp_path / "small").stat().st_size < 0.4 * (tmp_path / "full").stat().st_size


@pytest.mark.parametrize("large", ["the diagonal", "a few values"])
def test_a_matrix_that_eight_bits_would_change_keeps_sixteen(large: str, tmp_path: Path) -> None:
    """Beside a large value of its row, small values would be rounded away, whether it stands alone or not."""
    model = SegCLIP(DINO_CONFIG)
    weight = model.image.grouping.mlp_out.fc1.weight.detach()
    rows, width = weight.shape
    values = 1e-3 * torch.randn(rows, width)
    if large == "the diagonal":
        values += torch.eye(width).repeat(rows // width, 1)
    else:
        values[:, :2] = 0.03
    weight.copy_(values)
    save_model(model, tmp_path / "m", eight_bit=True)
    loaded = load_model(tmp_path / "m").image.grouping.mlp_out.fc1.weight
    torch.testing.assert_close(loaded.detach(), values, rtol=2**-11, atol=1e-7)


def test_what_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    model = SegCLIP(DINO_CONFIG)
    torch.nn.init.constant_(model.image.norm_post.bias.detach(), 1e6)
    save_model(model, tmp_path / "m", eight_bit=True)
    assert (load_model(tmp_path / "m").image.norm_post.bias == 1e6).all()


def test_a_row_of_zeros_survives_eight_bits(tmp_path: Path) -> None:
    model = SegCLIP(DINO_CONFIG)
    with torch.no_grad():
        model.state_dict()["text.token_embedding.weight"][0] = 0
    save_model(model, tmp_path / "m", eight_bit=True)
    assert load_model(tmp_path / "m").state_dict()["text.token_embedding.weight"][0].abs().max() == 0


@pytest.mark.parametrize("eight_bit", [False, True])
def test_weights_that_are_not_finite_are_not_written(eight_bit: bool, tmp_path: Path) -> None:
    model = SegCLIP(DINO_CONFIG)
    with torch.no_grad():
        model.state_dict()["text.token_embedding.weight"][0, 0] = torch.inf
    with pytest.raises(CheckpointError, match=r"not written: NaN or infinite weights in 1 \(text\.token_emb"):
        save_model(model, tmp_path / "m", eight_bit=eight_bit)
    with pytest.raises(ValueError, match=r"NaN or infinite weights, such as text\.token_embedding\.weight"):
        model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"m\.onnx: not written: NaN or infinite weights"):
        export(model, tmp_path / "m.onnx")


def test_saving_makes_folders_and_leaves_nothing_aside(tiny: SegCLIP, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "a" / "b" / "m.safetensors")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("target", ["file/m.safetensors", "folder"])
def test_a_target_that_cannot_be_written(tiny: SegCLIP, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_model(tiny, tmp_path / target)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("keep", [0, 4, 20, 1000, -1])
def test_truncated(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors: .* no whole safetensors file"):
        load_model(saved)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing here"):
        load_model(tmp_path / "nothing here")


def test_header_that_lies_about_its_length(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        load_model(tmp_path / "m")


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({f"layer{i}.weight": torch.zeros(2) for i in range(9)}, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"other\.safetensors: .*9 \(layer0\.weight, .*\.\.\.\), without a segclip"
    ):
        load_model(tmp_path / "other.safetensors")


def test_missing_and_extra_names_are_listed(saved: Path) -> None:
    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        del state["image.grouping.centers"]
        state["image.surplus"] = torch.zeros(2)

    with pytest.raises(CheckpointError, match=r"missing: 1 \(image\.grouping\.centers\)\. extra: 1 \(image\.surplus\)"):
        load_model(rewrite(saved, change))


def test_wrong_shapes_are_listed(saved: Path) -> None:
    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        state["image.norm_post.bias"] = torch.zeros(3)

    with pytest.raises(CheckpointError, match=r"wrong shapes: 1 \(image\.norm_post\.bias \(3,\), expected \(128,\)\)"):
        load_model(rewrite(saved, change))


def test_a_newer_format_says_so(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"format version 9; .* update segclip"):
        load_model(rewrite(saved, lambda state, metadata: metadata.update(format_version="9")))


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"image": {"colour": 1}, "text": {}}', '{"image": 3}'])
def test_a_damaged_configuration(saved: Path, config: str) -> None:
    with pytest.raises(CheckpointError, match="not a segclip model configuration"):
        load_model(rewrite(saved, lambda state, metadata: metadata.update(segclip_config=config)))


def test_a_configuration_of_other_sizes(saved: Path) -> None:
    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["segclip_config"])
        config["embed"] = 32
        metadata["segclip_config"] = json.dumps(config)

    with pytest.raises(CheckpointError, match=r"wrong shapes: 2 \(image\.projection"):
        load_model(rewrite(saved, change))


@pytest.mark.parametrize(
    ("name", "value"), [("trunk_layers", 10**9), ("trunk_layers", 2.5), ("patch", 0), ("heads", "many")]
)
def test_a_configuration_of_impossible_sizes(saved: Path, name: str, value: Any) -> None:
    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["segclip_config"])
        config["image"][name] = value
        metadata["segclip_config"] = json.dumps(config)

    start = time.process_time()
    with pytest.raises(
        CheckpointError, match=rf"tiny\.safetensors: image\.{name} .*{value}.*; expected a whole number"
    ):
        load_model(rewrite(saved, change))
    assert time.process_time() - start < 5


def test_no_block_is_made_that_has_no_tensor(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["segclip_config"])
        config["image"]["trunk_layers"] = 1024
        metadata["segclip_config"] = json.dumps(config)

    monkeypatch.setattr(native, "SegCLIP", None)
    with pytest.raises(CheckpointError, match=r"a configuration of 1033 blocks, but \d+ tensors"):
        load_model(rewrite(saved, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * torch.nan, r"NaN or infinite weights in 1 \(image\.norm_post\.bias\)"),
        (lambda t: t.index_fill(0, torch.tensor(1), torch.inf), "NaN or infinite weights"),
        (lambda t: t.long(), r"no floating-point numbers: 1 \(image\.norm_post\.bias int64\)"),
    ],
)
def test_weights_that_no_model_computes_with(
    saved: Path, tmp_path: Path, tiny: SegCLIP, change: Callable[[Tensor], Tensor], message: str
) -> None:
    def spoil(state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        state["image.norm_post.bias"] = change(state["image.norm_post.bias"])

    with pytest.raises(CheckpointError, match=message):
        load_model(rewrite(saved, spoil))
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    spoil(state)
    save_file(state, tmp_path / "model.safetensors")  # as save_pretrained does
    (tmp_path / "config.json").write_text(tiny.config.to_json())
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_scale_that_is_not_finite(tiny: SegCLIP, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "m", eight_bit=True)

    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        state["image.grouping.mlp_out.fc1.weight.scale"][0] = torch.nan

    with pytest.raises(CheckpointError, match=r"NaN or infinite weights in 1 \(image\.grouping\.mlp_out\.fc1\.weight"):
        load_model(rewrite(tmp_path / "m", change))


def test_eight_bits_without_their_scale(tiny: SegCLIP, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "m", eight_bit=True)

    def change(state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        del state["image.grouping.mlp_out.fc1.weight.scale"]

    with pytest.raises(CheckpointError, match=r"image\.grouping\.mlp_out\.fc1\.weight\.scale, one number per row"):
        load_model(rewrite(tmp_path / "m", change))
