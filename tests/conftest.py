"""What several tests share: the golden arrays and the small model they belong to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GOLDEN
from helpers.formats import State, Tree, to_openai
from helpers.small_model import PLAIN, small_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from segclip.checkpoints.loading import load
from segclip.checkpoints.native import save_model
from segclip.model.segclip import SegCLIP


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "tiny.golden.safetensors")


@pytest.fixture(scope="session")
def golden_losses() -> dict[str, Any]:
    return json.loads((GOLDEN / "tiny.golden.json").read_text())["losses"]


@pytest.fixture(scope="session")
def tiny_bin() -> Path:
    """The small model as the authors' code stores it."""
    return GOLDEN / "tiny.bin"


@pytest.fixture(scope="session")
def tiny(tiny_bin: Path) -> SegCLIP:
    """The small model; shared, so tests leave it as it is."""
    return load(tiny_bin, "cpu")


@pytest.fixture(scope="session")
def authors(tiny_bin: Path) -> State:
    """The small model's weights under the authors' names."""
    return torch.load(tiny_bin, weights_only=True)


@pytest.fixture(scope="session")
def openai(authors: State) -> State:
    """Its towers under OpenAI's names."""
    return to_openai(authors)


@pytest.fixture
def archive(openai: State, tmp_path: Path) -> Path:
    """A TorchScript archive of them, as OpenAI published its own."""
    path = tmp_path / "ViT-tiny.pt"
    module = torch.jit.trace(Tree(openai), torch.zeros(1))
    assert isinstance(module, torch.jit.ScriptModule)
    module.save(path)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP-like model with random weights, in a file that no test changes."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(small_model(), path)
    return path


@pytest.fixture(scope="session")
def plain_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP without centers, with random weights, in a file that no test changes."""
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_model(small_model(PLAIN), path)
    return path


@pytest.fixture(scope="session")
def heads() -> dict[str, Tensor]:
    """What the authors of dense heads computed."""
    return load_file(GOLDEN / "heads.safetensors")


@pytest.fixture(scope="session")
def clip_file(heads: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small CLIP that they computed it with."""
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file({name.removeprefix("weights/"): tensor for name, tensor in heads.items() if "weights/" in name}, path)
    return path


@pytest.fixture(scope="session")
def clip(clip_file: Path) -> SegCLIP:
    """The same; shared, so tests leave it as it is."""
    return load(clip_file, "cpu")
