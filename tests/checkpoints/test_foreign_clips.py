"""Every kind of file that holds a CLIP gives the towers that transformers' CLIPModel computes from the same weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State, Tree, from_transformers
from helpers.plain_clip import image_embedding, image_tokens
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from segclip.checkpoints import openai, transformers
from segclip.checkpoints.clip_config import ClipConfig
from segclip.checkpoints.loading import load
from segclip.model.segclip import SegCLIP

ATOL = 2e-5
TEXTS = torch.tensor([[510, 7, 19, 300, 511, 0, 0], [510, 42, 511, 0, 0, 0, 0]])


def make_clip(activation: str, width: int, heads: int, hidden: int, text_heads: int) -> CLIPModel:
    """A small CLIP; unlike a new one's, its weights are large enough for each of them to matter."""
    text = {"hidden_size": 192, "num_attention_heads": text_heads, "intermediate_size": 256, "num_hidden_layers": 2}
    image = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": hidden, "num_hidden_layers": 3}
    config = CLIPConfig(
        text_config=text
        | {"hidden_act": activation, "vocab_size": 512, "max_position_embeddings": 16}
        | {"bos_token_id": 510, "eos_token_id": 511},
        vision_config=image | {"hidden_act": activation, "image_size": 48, "patch_size": 16},
        projection_dim=64,
    )
    model = CLIPModel(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(noise / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.2 * noise)
        if "norm" in name and name.endswith("weight"):
            weight += 1
    return model


CLIPS: dict[str, tuple[str, int, int, int, int]] = {
    "as OpenAI's": ("quick_gelu", 128, 2, 512, 3),
    "exact GELU": ("gelu", 128, 2, 512, 3),
    "heads of 80, as ViT-H": ("gelu", 160, 2, 640, 3),
    "heads of 88, as ViT-g": ("gelu", 176, 2, 768, 3),
    "narrow heads": ("quick_gelu", 128, 8, 300, 6),
}


@pytest.fixture(scope="module", params=CLIPS)
def clip(request: pytest.FixtureRequest) -> CLIPModel:
    return make_clip(*CLIPS[request.param])


def transformers_folder(clip: CLIPModel, folder: Path) -> Path:
    clip.save_pretrained(folder)
    return folder


def sharded_folder(clip: CLIPModel, folder: Path) -> Path:
    clip.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2 and not (folder / "model.safetensors").exists()
    return folder


def one_shard(clip: CLIPModel, folder: Path) -> Path:
    return sorted(sharded_folder(clip, folder).glob("model-*.safetensors"))[0]


def sharded_bin(clip: CLIPModel, folder: Path) -> Path:
    (folder / "config.json").write_text(clip.config.to_json_string(use_diff=False))
    names = sorted(clip.state_dict())
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for part, inside in parts.items():
        torch.save({name: clip.state_dict()[name] for name in inside}, folder / part)
    places = {name: part for part, inside in parts.items() for name in inside}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def open_clip_config(clip: CLIPModel) -> dict[str, Any]:
    config: Any = clip.config
    image, text = config.vision_config, config.text_config
    return {
        "model_cfg": {
            "embed_dim": clip.config.projection_dim,
            **({"quick_gelu": True} if image.hidden_act == "quick_gelu" else {}),
            "vision_cfg": {
                **{"image_size": image.image_size, "patch_size": image.patch_size, "width": image.hidden_size},
                **{"layers": image.num_hidden_layers, "head_width": image.hidden_size // image.num_attention_heads},
                "mlp_ratio": image.intermediate_size / image.hidden_size,
            },
            "text_cfg": {
                **{"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size},
                **{"width": text.hidden_size, "heads": text.num_attention_heads, "layers": text.num_hidden_layers},
            },
        }
    }


def open_clip_folder(clip: CLIPModel, folder: Path) -> Path:
    save_file(from_transformers(clip.state_dict()), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(clip)))
    return folder


def open_clip_bin(clip: CLIPModel, folder: Path) -> Path:
    torch.save(from_transformers(clip.state_dict()), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(clip)["model_cfg"]))  # its model_configs
    return folder


def prefixed(prefix: str, inner: str = "") -> Callable[[CLIPModel, Path], Path]:
    """A training's checkpoint of an OpenCLIP model that was wrapped, and of which a part was compiled."""

    def write(clip: CLIPModel, folder: Path) -> Path:
        state = {
            prefix + name.replace("visual.", f"visual.{inner}"): tensor
            for name, tensor in from_transformers(clip.state_dict()).items()
        }
        torch.save({"epoch": 3, "state_dict": state}, folder / "epoch_3.pt")
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(clip)))
        return folder / "epoch_3.pt"

    return write


def wrapped_transformers(clip: CLIPModel, folder: Path) -> Path:
    save_file({f"model.{name}": tensor for name, tensor in clip.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(clip.config.to_json_string(use_diff=False))
    return folder


FORMATS: dict[str, Callable[[CLIPModel, Path], Path]] = {
    "transformers": transformers_folder,
    "transformers, sharded": sharded_folder,
    "one shard's name": one_shard,
    "transformers, pickled and sharded": sharded_bin,
    "transformers, model.": wrapped_transformers,
    "OpenCLIP": open_clip_folder,
    "OpenCLIP, pickled": open_clip_bin,
    "module.": prefixed("module."),
    "model.": prefixed("model."),
    "_orig_mod.": prefixed("_orig_mod."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "visual._orig_mod.": prefixed("model.", "_orig_mod."),
}


@dataclass
class Read:
    """What a file gave: the tensors before a model was made of them, what is told of them, and the model."""

    state: State
    told: ClipConfig
    model: SegCLIP


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Read]:
    given: list[tuple[State, ClipConfig | None]] = []
    for adapter in (openai, transformers):
        build = adapter.build_from_clip

        def keep(state: State, told: ClipConfig | None, *rest: Any, build: Callable[..., SegCLIP] = build) -> SegCLIP:
            given.append((dict(state), told))
            return build(state, told, *rest)

        monkeypatch.setattr(adapter, "build_from_clip", keep)

    def read(path: Path) -> Read:
        model = load(path, "cpu")
        state, told = given.pop()
        assert told is not None, "no configuration was found"
        return Read(state, told, model)

    return read


def theirs(clip: CLIPModel, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B,N,D) after the last block, the image's embedding (B,E), the texts' (K,E)."""
    seen, texts = clip.vision_model(pixels), clip.text_model(input_ids=TEXTS)
    return (
        seen.last_hidden_state,
        clip.visual_projection(seen.pooler_output),
        clip.text_projection(texts.pooler_output),
    )


def assert_same_towers(found: Read, clip: CLIPModel, pixels: Tensor) -> None:
    tokens, image, texts = theirs(clip, pixels)
    ours = image_tokens(found.state, found.told, pixels)
    torch.testing.assert_close(ours, tokens, rtol=0, atol=ATOL)
    torch.testing.assert_close(image_embedding(found.state, ours)[:, 0], image, rtol=0, atol=ATOL)
    with torch.no_grad():
        torch.testing.assert_close(found.model.encode_text(TEXTS), texts, rtol=0, atol=ATOL)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("format", ["transformers", "OpenCLIP"])
def test_towers_are_those_of_transformers(
    clip: CLIPModel, format: str, pixels: Tensor, read: Callable[[Path], Read], tmp_path: Path
) -> None:
    assert_same_towers(read(FORMATS[format](clip, tmp_path)), clip, pixels)


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("transformers", "OpenCLIP")])
def test_other_files_too(format: str, pixels: Tensor, read: Callable[[Path], Read], tmp_path: Path) -> None:
    clip = make_clip(*CLIPS["heads of 80, as ViT-H"])
    assert_same_towers(read(FORMATS[format](clip, tmp_path)), clip, pixels)


@pytest.mark.parametrize("archive", [False, True])
def test_openais_own_files(archive: bool, pixels: Tensor, read: Callable[[Path], Read], tmp_path: Path) -> None:
    clip = make_clip(*CLIPS["as OpenAI's"])
    sizes = {"input_resolution": 48, "context_length": 16, "vocab_size": 512}
    state = from_transformers(clip.state_dict()) | {name: torch.tensor(size) for name, size in sizes.items()}
    if archive:
        module = torch.jit.trace(Tree(state), torch.zeros(1))
        assert isinstance(module, torch.jit.ScriptModule)
        module.save(tmp_path / "ViT.pt")
    else:
        torch.save(state, tmp_path / "ViT.pt")
    assert_same_towers(read(tmp_path / "ViT.pt"), clip, pixels)


def test_what_is_told_matters(clip: CLIPModel, pixels: Tensor, read: Callable[[Path], Read], tmp_path: Path) -> None:
    """The comparison above would find another activation, and other heads."""
    found = read(transformers_folder(clip, tmp_path))
    tokens, image = theirs(clip, pixels)[0], found.told.image
    activation = "gelu" if image.activation is None else None
    for other in (replace(image, activation=activation), replace(image, heads=16)):
        ours = image_tokens(found.state, replace(found.told, image=other), pixels)
        assert (ours - tokens).abs().max() > 100 * ATOL
