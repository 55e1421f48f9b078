"""What is no CLIP with a plain ViT is refused in one line, with what it is and what would do; parts must be whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State, to_transformers
from safetensors.torch import load_file, save_file
from transformers import (
    BlipConfig,
    BlipModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    GroupViTConfig,
    GroupViTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
)

from segclip.checkpoints import sharded
from segclip.checkpoints.loading import load
from segclip.checkpoints.native import CheckpointError

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = SMALL | {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}
IMAGE: dict[str, Any] = SMALL | {"image_size": 32, "patch_size": 16}
CLIP_TEXT: dict[str, Any] = {**SMALL, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "SigLIP": (lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=IMAGE)), "SigLIP"),
    "BLIP": (lambda: BlipModel(BlipConfig(text_config=TEXT, vision_config=IMAGE)), "BLIP"),
    "GroupViT": (
        lambda: GroupViTModel(GroupViTConfig(vision_config={"hidden_size": 48, "depths": [1, 1, 1]})),
        "GroupViT",
    ),
    "text": (lambda: CLIPTextModel(CLIPTextConfig(**CLIP_TEXT)), "a text tower alone"),
    "text, projected": (lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_TEXT)), "a text tower alone"),
    "image": (lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE)), "an image tower alone"),
    "DINOv2": (lambda: Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)), "an image tower alone"),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models_of_transformers(name: str, tmp_path: Path) -> None:
    make, what = MODELS[name]
    make().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: looks like {what}.*openai/clip-vit-base-patch16"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["visual.layer1.0.conv1.weight", "visual.attnpool.k_proj.weight"], "OpenAI's CLIP with a ResNet image tower"),
        (["visual.trunk.attn_pool.latent", "text.token_embedding.weight"], "SigLIP"),
        (["visual.trunk.stem.0.conv.weight", "text.token_embedding.weight"], "a CLIP with a convolutional image tower"),
        (["visual.trunk.stages.0.blocks.0.conv_dw.weight"], "a CLIP with a convolutional image tower"),
        (["image_encoder.model.patch_embed.0.conv.weight"], r"a CLIP with a convolutional image tower \(MobileCLIP"),
        (["visual.trunk.cls_token", "visual.trunk.blocks.0.norm1.weight"], "an OpenCLIP model whose image tower is"),
        (["visual.blocks.0.attn.q_proj.weight", "text.positional_embedding"], "EVA-CLIP"),
        (["visual_encoder.cls_token", "text_decoder.bert.embeddings.word_embeddings.weight"], "BLIP;"),
        (["query_tokens", "qformer.layernorm.weight"], "a language model that is shown images"),
        (["visual.transformer.resblocks.0.ln_1.bias", "text_decoder.ln_final.bias"], "CoCa"),
        (["clip.vision_model.post_layernorm.bias", "decoder.film_mul.weight"], "CLIPSeg"),
        (["visual.proj", "text.transformer.embeddings.word_embeddings.weight"], "a CLIP whose text tower is a BERT"),
        (["visual.proj", "bert.embeddings.word_embeddings.weight"], "a CLIP whose text tower is a BERT"),
        (["visual.proj", "text.transformer.resblocks.0.ln_1.bias"], "an OpenCLIP model with a text tower of another"),
        (["base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"], "a LoRA"),
        (["transformer.resblocks.0.ln_1.bias", "text_projection"], "a text tower alone"),
        (["visual.class_embedding", "visual.transformer.resblocks.0.ln_1.bias"], "an image tower alone"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_models_by_their_names(names: list[str], what: str, prefix: str, tmp_path: Path) -> None:
    torch.save({prefix + name: torch.zeros(2) for name in names}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=rf"weights\.pt: looks like {what}") as caught:
        load(tmp_path / "weights.pt")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


CONFIG = {
    "model_type": "clip",
    "projection_dim": 64,
    "vision_config": {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 12, "image_size": 96}
    | {"patch_size": 16, "intermediate_size": 512},
    "text_config": {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "vocab_size": 512}
    | {"max_position_embeddings": 77, "intermediate_size": 256},
}


@pytest.fixture
def folder(openai: State, tmp_path: Path) -> Path:
    """A CLIP in two files, with its configuration."""
    state = to_transformers(openai)
    places = {name: f"model-0000{1 + ('vision' in name)}-of-00002.safetensors" for name in state}
    for part in set(places.values()):
        save_file({name: tensor for name, tensor in state.items() if places[name] == part}, tmp_path / part)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_right_configuration(folder: Path) -> None:
    config = load(folder, "cpu").config
    assert (config.image.width, config.image.side, config.text.layers, config.embed) == (128, 96, 2, 64)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        (None, "projection_dim", 512, "embedding 512, and its tensors have 64"),
        ("vision_config", "num_hidden_layers", 24, "image layers 24, and its tensors have 12"),
        ("vision_config", "patch_size", 32, "image patch 32, and its tensors have 16"),
        ("vision_config", "image_size", 224, "image side 224, and its tensors have 96"),
        ("vision_config", "intermediate_size", 3072, "image hidden channels 3072, and its tensors have 512"),
        ("text_config", "vocab_size", 49408, "text vocabulary 49408, and its tensors have 512"),
        ("text_config", "max_position_embeddings", 64, "text context 64, and its tensors have 77"),
        (None, "model_type", "siglip", r"the configuration of a siglip, not of a CLIP with both towers"),
    ],
)
def test_a_wrong_configuration_beside_the_right_weights(
    folder: Path, part: str | None, key: str, value: Any, message: str
) -> None:
    config = json.loads(json.dumps(CONFIG))
    (config[part] if part else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"{message}.*put the configuration of these weights there"):
        load(folder)


def test_a_part_that_is_missing(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"of its 2 files are missing: 1 \(model-00002-of-00002"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"one of 2 files of one model; put the others and model\.safetensors\.i"):
        load(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="a folder without"):
        load(folder)


def test_a_part_that_is_cut_or_of_another_model(folder: Path) -> None:
    part = folder / "model-00002-of-00002.safetensors"
    state = load_file(part)
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: .* no whole safetensors file"):
        load(folder)
    del state["vision_model.post_layernorm.bias"]
    save_file(state, part)
    with pytest.raises(CheckpointError, match=r"without 1 \(vision_model\.post_layernorm\.bias\), which are in it by"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no index of weights"),
        ("[" * 100_000, "no index of weights"),
        ("[]", "an index without weight_map"),
        ('{"weight_map": {}}', "an index without weight_map"),
        ('{"weight_map": {"a": 1}}', "1 is no name of a file beside it"),
        ('{"weight_map": {"a": "../model.bin"}}', r"'\.\./model\.bin' is no name of a file beside it"),
        ('{"weight_map": {"a": "/etc/hostname"}}', "is no name of a file beside it"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "is no name of a file beside it"),
        (" " * 3000, "3,000 bytes, more than an index has"),
    ],
)
def test_a_damaged_index(folder: Path, content: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(content) == 3000:
        monkeypatch.setattr(sharded, "LONGEST_INDEX", 2000)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors\.index\.json: .*{message}"):
        load(folder)


def test_an_index_of_too_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "MOST_PARTS", 1)
    with pytest.raises(CheckpointError, match="2 files; expected at most 1"):
        load(folder)


def test_the_sha256_is_that_of_all_parts(folder: Path) -> None:
    index, part = folder / "model.safetensors.index.json", folder / "model-00002-of-00002.safetensors"
    before = sharded.weights_sha256(index)
    assert sharded.weights_sha256(part) == before != sharded.weights_sha256(folder / "config.json")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert sharded.weights_sha256(index) != before
