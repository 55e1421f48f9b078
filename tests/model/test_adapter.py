"""The network after the text tower: it starts as nothing, learns, and is saved with the model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.small_model import ADAPTED, SENTENCE, small_model
from torch import nn

from segclip import load
from segclip.checkpoints.native import load_model, save_model
from segclip.cli import main
from segclip.config import ModelConfig
from segclip.model.layers import Adapter
from segclip.model.segclip import SegCLIP

TEXTS = ["a cat", "a red car on a road"]


def trained() -> SegCLIP:
    """A model whose adapter does something."""
    model = small_model(ADAPTED)
    with torch.no_grad():
        for parameter in model.text_adapter.parameters():
            parameter.normal_(std=0.1)
    return model


def test_it_starts_as_the_direction_of_what_it_is_given() -> None:
    model, plain = small_model(ADAPTED), small_model(SENTENCE)
    adapter = model.text_adapter
    assert isinstance(adapter, Adapter) and isinstance(plain.text_adapter, nn.Identity)
    unit = F.normalize(torch.randn(2, 3, 64), dim=-1)
    torch.testing.assert_close(adapter(unit), unit)
    torch.testing.assert_close(adapter(7 * unit), unit)
    ids = model.tokenize(TEXTS)
    torch.testing.assert_close(model.encode_text(ids), F.normalize(model.text(ids), dim=-1))
    assert torch.equal(plain.encode_text(ids), plain.text(ids))


def test_it_adds_a_two_layer_network_of_the_unit_vector() -> None:
    model = trained()
    adapter, x = model.text_adapter, torch.randn(5, 64)
    assert isinstance(adapter, Adapter) and adapter.fc1.weight.shape == (96, 64)
    unit = x / x.norm(dim=-1, keepdim=True)
    hidden = F.gelu(unit @ adapter.fc1.weight.T + adapter.fc1.bias)
    torch.testing.assert_close(adapter(x), unit + hidden @ adapter.fc2.weight.T + adapter.fc2.bias)


def test_all_of_it_learns_from_its_start() -> None:
    adapter = small_model(ADAPTED).text_adapter
    optimiser, x, wanted = torch.optim.SGD(adapter.parameters(), lr=1.0), torch.randn(8, 64), torch.randn(8, 64)
    before = {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}
    for _ in range(3):
        optimiser.zero_grad()
        (adapter(x) - wanted).square().mean().backward()
        optimiser.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in adapter.named_parameters())


@pytest.mark.parametrize("eight_bit", [False, True])
def test_it_is_saved_and_loaded(eight_bit: bool, tmp_path: Path) -> None:
    model = trained()
    save_model(model, tmp_path / "m.safetensors", eight_bit=eight_bit)
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == ADAPTED
    ids = model.tokenize(TEXTS)
    found, expected = loaded.encode_text(ids), model.encode_text(ids)
    torch.testing.assert_close(found, expected, atol=0.1 if eight_bit else 0, rtol=0)


def test_it_goes_through_a_folder_and_through_convert(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path / "folder")
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "converted.safetensors")]) == 0
    ids = model.tokenize(TEXTS)
    for path in ("folder", "converted.safetensors"):
        loaded = load(str(tmp_path / path), "cpu")
        assert loaded.config == ADAPTED
        assert torch.equal(loaded.encode_text(ids), model.encode_text(ids)), path


def test_a_configuration_that_does_not_name_it_has_none(tmp_path: Path) -> None:
    """As files of earlier versions."""
    known = asdict(SENTENCE)
    del known["text"]["adapter"], known["center_in_region"]
    assert ModelConfig.from_json(json.dumps(known)) == SENTENCE
    names = small_model(SENTENCE).state_dict().keys()
    assert not any(name.startswith("text_adapter") for name in names)
