"""A model's configuration is checked in one place, wherever it comes from."""

import json
import time
from typing import Any

import pytest

from segclip.config import ImageConfig, ModelConfig, TextConfig


def changed(name: str, value: Any) -> dict[str, Any]:
    """The default configuration as JSON has it, with one field changed."""
    raw = json.loads(ModelConfig().to_json())
    part, _, field = name.rpartition(".")
    (raw[part] if part else raw)[field] = value
    return raw


def test_a_configuration_comes_back() -> None:
    config = ModelConfig(ImageConfig(heads=4, activation="gelu"), TextConfig(mlp_ratio=3.0), tau=1.0)
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image.trunk_layers", 10**9, r"image\.trunk_layers 1000000000; expected a whole number from 0 to 1024"),
        pytest.param("image.trunk_layers", 10**5000, r"image\.trunk_layers of type int; expected", id="5001 digits"),
        ("image.trunk_layers", -1, "trunk_layers -1"),
        ("image.trunk_layers", 2.0, "trunk_layers 2.0"),
        ("image.trunk_layers", True, "trunk_layers True"),
        ("image.trunk_layers", None, "trunk_layers None"),
        pytest.param(
            "image.trunk_layers", "x" * 10_000, r"trunk_layers 'x{50}\.\.\.x{24}'; expected", id="a long text"
        ),
        ("text.layers", [[]], r"text\.layers \[\[\]\]"),
        ("text.heads", 0, "heads 0"),
        ("image.heads", 0, "heads 0; expected a whole number from 1"),
        ("image.patch", 0, "patch 0"),
        ("image.width", 1 << 62, "width"),
        ("image.width", 100, "image.width 100 is not a multiple of 64"),
        ("image.mlp_ratio", 0, "mlp_ratio 0; expected a number above 0, to 64"),
        ("text.mlp_ratio", 1e9, "mlp_ratio 1000000000.0"),
        ("image.kind", 3, r"image\.kind 3; expected a str"),
        ("image.activation", {}, r"activation \{\}; expected a str"),
        ("text.vocabulary", 1 << 40, "vocabulary"),
        ("centers", 0, "centers 0"),
        ("decoder_heads", "8", "decoder_heads '8'"),
        ("center_in_region", 1, "center_in_region 1; expected a bool"),
        ("tau", float("nan"), "tau nan; expected a number"),
        ("tau", float("inf"), "tau inf; expected a number"),
        ("tau", 0.0, "tau 0.0; give a temperature above 0"),
        ("mask_ratio", 1.0, "mask_ratio 1.0; give a share"),
        ("image", ImageConfig(), "not a segclip model configuration"),
        ("image", {"x" * 10_000: 1}, "not a segclip model configuration: .*unexpected keyword"),
    ],
)
def test_wrong_types_and_ranges(name: str, value: Any, message: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig.from_dict(changed(name, value))
    assert len(str(caught.value)) < 400 and time.process_time() - start < 1


NO_CONFIGURATIONS = ["", "[]", "{}", "3", "null", "[" * 100_000, "1" * 10_000, '{"image": {}, "text": 1e999}']


@pytest.mark.parametrize("text", NO_CONFIGURATIONS, ids=lambda text: text[:8])
def test_what_is_no_configuration(text: str) -> None:
    with pytest.raises(ValueError, match="not a segclip model configuration"):
        ModelConfig.from_json(text)
