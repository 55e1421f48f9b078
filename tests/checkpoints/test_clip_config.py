"""What CLIP's tensors do not tell is read of the configuration beside them, or it is said that it is not known."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State, to_transformers
from safetensors.torch import save_file

from segclip.checkpoints import native
from segclip.checkpoints.clip_weights import _mlp_ratio, config_with_centers
from segclip.checkpoints.loading import convert, load
from segclip.checkpoints.native import CheckpointError, load_model
from segclip.config import ModelConfig
from segclip.data.normalise import normalise
from segclip.model.segclip import SegCLIP

# Of the small model: widths of 128 and 64, which OpenAI would give heads of 64 channels.
OPEN_CLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 96, "layers": 12, "width": 128, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
}
TRANSFORMERS: dict[str, Any] = {
    "model_type": "clip",
    "vision_config": {"hidden_size": 128, "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
    "text_config": {"hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu"},
}


@pytest.fixture
def openclip(openai: State) -> State:
    """OpenCLIP's names are OpenAI's, without the sizes that OpenAI's archives have."""
    return {name: tensor for name, tensor in openai.items() if tensor.ndim or name == "logit_scale"}


@pytest.fixture
def folder(openclip: State, tmp_path: Path) -> Path:
    """A repository as LAION's are, without configurations."""
    save_file(openclip, tmp_path / "open_clip_model.safetensors")
    torch.save(to_transformers(openclip), tmp_path / "pytorch_model.bin")
    return tmp_path


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    *parts, last = path.split(".")
    node = config
    for part in parts:
        node = node[part]
    node[last] = value
    return config


def assert_exact_gelu_and_narrow_heads(config: ModelConfig) -> None:
    assert (config.image.activation, config.text.activation) == ("gelu", "gelu")
    assert (config.image.heads, config.text.heads) == (4, 4)


@pytest.mark.parametrize("config", [OPEN_CLIP, TRANSFORMERS])
@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "pytorch_model.bin"])
def test_either_configuration_is_read_beside_either_format(
    folder: Path, weights: str, config: dict[str, Any], tiny: SegCLIP, caplog: pytest.LogCaptureFixture
) -> None:
    name = "open_clip_config.json" if config is OPEN_CLIP else "config.json"
    (folder / name).write_text(json.dumps(config))
    model = load(folder / weights, "cpu")
    assert_exact_gelu_and_narrow_heads(model.config)
    assert "do not tell" not in caplog.text
    ids = torch.tensor([[510, 5, 7, 511]])
    with torch.no_grad():
        assert (model.encode_text(ids) - tiny.encode_text(ids)).abs().max() > 1e-3  # it is not computed as OpenAI's
    convert(folder / weights, folder / "ours.safetensors")
    assert load_model(folder / "ours.safetensors").config == model.config


def test_a_folder_of_openclip(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    assert_exact_gelu_and_narrow_heads(load(folder, "cpu").config)


def test_what_is_openais_own_needs_no_fields(folder: Path, tiny: SegCLIP) -> None:
    (folder / "open_clip_config.json").write_text(
        json.dumps(changed(changed(OPEN_CLIP, "model_cfg.quick_gelu", True), "model_cfg.vision_cfg.head_width", 64))
    )
    config = load(folder / "open_clip_model.safetensors", "cpu").config
    assert config_with_centers(config).image == tiny.config.image and config.text.activation is None


def test_defaults_of_transformers_are_left_out_of_its_files(folder: Path) -> None:
    (folder / "config.json").write_text('{"text_config_dict": {"num_attention_heads": 2}, "vision_config": {}}')
    with pytest.raises(CheckpointError, match=r"image\.width 128 is not a multiple of 12"):
        load(folder)
    (folder / "config.json").write_text('{"text_config": null, "vision_config": {"num_attention_heads": 2}}')
    config = load(folder, "cpu").config
    assert (config.image.heads, config.text.heads, config.text.activation) == (None, 8, None)


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "pytorch_model.bin"])
def test_without_a_configuration_it_is_said(folder: Path, weights: str, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "config.json").write_text('{"some": "other program"}')
    with caplog.at_level(logging.WARNING):
        config = load(folder / weights, "cpu").config
    assert "do not tell the activation and the width of attention heads" in caplog.text
    assert (config.image.heads, config.image.activation, config.text.heads) == (None, None, 1)


def test_openais_archives_tell_enough(archive: Path, tiny: SegCLIP, caplog: pytest.LogCaptureFixture) -> None:
    (archive.parent / "config.json").write_text(json.dumps(TRANSFORMERS))  # of something else in this folder
    assert config_with_centers(load(archive, "cpu").config) == tiny.config
    assert "do not tell" not in caplog.text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_cfg.vision_cfg.width", 256, "image width 256, and its tensors have 128"),
        ("model_cfg.text_cfg.width", 512, "text width 512, and its tensors have 64"),
        ("model_cfg.text_cfg.heads", 3, r"text\.width 64 is not a multiple of 3"),
        ("model_cfg.text_cfg.heads", "4", "heads is '4'"),
        ("model_cfg.vision_cfg.head_width", 0, "head_width is 0"),
        ("model_cfg.vision_cfg.head_width", 1e400, "head_width is inf"),
        ("model_cfg.vision_cfg.no_ln_pre", True, r"vision_cfg\.no_ln_pre is True, which no model here computes"),
        ("model_cfg.vision_cfg.pool_type", "avg", r"vision_cfg\.pool_type is 'avg'"),
        ("model_cfg.text_cfg.act_kwargs", {"approximate": "tanh"}, r"text_cfg\.act_kwargs is \{"),
        ("model_cfg.vision_cfg", [], "image width 768, and its tensors have 128"),
        ("model_cfg.vision_cfg", [1], r"vision_cfg is \[1\]"),
        ("preprocess_cfg.std", [0.5, 0.5, 0], r"std is \[0\.5, 0\.5, 0\]"),
        ("preprocess_cfg.mean", ["a"], "mean is"),
    ],
)
def test_what_no_model_here_computes_is_refused(folder: Path, path: str, value: Any, message: str) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps(changed(OPEN_CLIP, path, value)))
    with pytest.raises(CheckpointError, match=message):
        load(folder / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config.hidden_act", "gelu_new", r"vision_config\.hidden_act is 'gelu_new', which no model here"),
        ("text_config.layer_norm_eps", 1e-6, r"text_config\.layer_norm_eps is 1e-06"),
        ("text_config.hidden_size", 128, "text width 128, and its tensors have 64"),
    ],
)
def test_what_no_model_here_computes_is_refused_of_transformers(
    folder: Path, path: str, value: Any, message: str
) -> None:
    (folder / "config.json").write_text(json.dumps(changed(TRANSFORMERS, path, value)))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b" " * 2000 + b"{}", b"1" * 5000])
def test_a_damaged_configuration(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(content) == 2002:
        monkeypatch.setattr(native, "LONGEST_CONFIG", 2000)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: no configuration \(.*mend it, or remove it") as caught:
        load(folder)
    assert len(str(caught.value)) < 600


def test_a_pipe_is_no_configuration(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(folder / "config.json")
    load(folder)
    assert "do not tell" in caplog.text


def test_pixels_of_other_statistics(folder: Path) -> None:
    """The patch embedding takes CLIP's own instead, at every size of photo."""
    half = {"mean": [0.5, 0.4, 0.6], "std": [0.5, 0.25, 0.4]}
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    own = load(folder / "open_clip_model.safetensors", "cpu").image
    (folder / "open_clip_config.json").write_text(json.dumps({**OPEN_CLIP, "preprocess_cfg": half}))
    (folder / "config.json").write_text(json.dumps(TRANSFORMERS))
    (folder / "preprocessor_config.json").write_text(json.dumps({f"image_{key}": half[key] for key in half}))
    photo = torch.randint(256, (1, 128, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = own.encode_patches(normalise(photo, tuple(half["mean"]), tuple(half["std"])))
        for name in ("open_clip_model.safetensors", "pytorch_model.bin"):
            image = load(folder / name, "cpu").image
            torch.testing.assert_close(image.encode_patches(image.normalise(photo)), expected, rtol=0, atol=1e-4)


def test_the_ratio_gives_the_hidden_channels() -> None:
    """Of ViT-g (1408, 6144) and bigG (1664, 8192) among others."""
    for width, hidden in (
        (1408, 6144),
        (1664, 8192),
        (768, 3072),
        *((w, h) for w in (7, 64, 130) for h in range(1, 600)),
    ):
        weight = torch.empty(hidden, width, device="meta")
        assert int(_mlp_ratio({"blocks.0.mlp.fc1.weight": weight}, "blocks.", width) * width) == hidden
    assert _mlp_ratio({}, "blocks.", 64) == _mlp_ratio({"blocks.0.mlp.fc1.weight": torch.empty(256, 64)}, "blocks.", 64)
