"""`segclip models` lists what opens, and says no more of it than is known."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from huggingface_hub import constants
from transformers import CLIPConfig, CLIPModel

from segclip.checkpoints.catalogue import CATALOGUE, SETS, SHAPES
from segclip.checkpoints.loading import HUB_ID, NAMES, load
from segclip.cli import main
from segclip.config import ModelConfig
from segclip.model.segclip import SegCLIP


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty ones."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SEGCLIP_CACHE", str(tmp_path / "segclip"))
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main(["models", "--json"]) == 0
    return {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}


def test_what_is_where(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    assert list(found) == [model.name for model in CATALOGUE]
    assert {name for name, model in found.items() if model["place"] != "download"} == {"mini"}
    (caches / "segclip").mkdir()
    (caches / "segclip" / "vit-b16.safetensors").touch()
    cache(caches, "openai/clip-vit-base-patch16", "model.safetensors")
    cache(caches, "someone/their-clip", "open_clip_pytorch_model.bin", {"vision_cfg": {}, "text_cfg": {}})
    cache(caches, "someone/bert", "model.safetensors", {"model_type": "bert"})
    cache(caches, "someone/unfinished", "README.md", {"model_type": "clip"})
    found = listed(capsys)
    assert found["vit-b16"]["place"] == found["openai/clip-vit-base-patch16"]["place"] == "cached"
    assert list(found)[len(CATALOGUE) :] == ["someone/their-clip"]
    assert found["someone/their-clip"]["place"] == "cached" and found["someone/their-clip"]["licence"] is None


def cache(caches: Path, name: str, weights: str, config: dict[str, Any] | None = None) -> None:
    """Put files where the hub's library keeps them."""
    folder = caches / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    (snapshot / weights).touch()
    (snapshot / ("config.json" if "model_type" in (config or {}) else "open_clip_config.json")).write_text(
        json.dumps(config)
    )


def test_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["models"]) == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    mini = next(row for row in rows if row[:1] == ["mini"])
    assert mini[2] == "55 M" and "research and trials" in mini[3] and mini[-1] == "in the package"
    assert ["openai/clip-vit-base-patch16", "naclip", "58.9", "32.2", "33.2", "ResCLIP's README"] in rows
    assert len([row for row in rows if row[:1] == ["vit-b16"]]) == 2


def test_the_list_says_what_is_so() -> None:
    names = [model.name for model in CATALOGUE]
    assert len({*names}) == len(names) and {*NAMES} == {name for name in names if not HUB_ID.fullmatch(name)}
    for model in CATALOGUE:
        assert model.licence and model.data and model.image and model.text
        for figure in model.figures:
            assert figure.source and figure.protocol and figure.miou.keys() <= {*SETS}
            assert all(0 < value < 100 for value in figure.miou.values())


def test_parameters() -> None:
    counts = {model.name: model.parameters for model in CATALOGUE}
    with torch.device("meta"):
        paper = SegCLIP(ModelConfig())
    assert counts["mini"] == sum(weight.numel() for weight in load("mini", "cpu").parameters())
    assert counts["vit-b16"] == sum(weight.numel() for weight in paper.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_of_clips(name: str) -> None:
    shape = SHAPES[name]
    heads = {"num_attention_heads": 16}  # which does not matter here
    text = {"hidden_size": shape.text_width, "intermediate_size": 4 * shape.text_width} | heads
    image = {"hidden_size": shape.width, "intermediate_size": shape.hidden, "num_hidden_layers": shape.layers} | heads
    config = CLIPConfig(
        text_config=text | {"num_hidden_layers": shape.text_layers},
        vision_config=image | {"patch_size": shape.patch, "image_size": shape.side},
        projection_dim=shape.embed,
    )
    with torch.device("meta"):
        clip = CLIPModel(config)
    assert shape.parameters() == sum(weight.numel() for weight in clip.parameters())


def test_the_page_lists_them_all() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert [model.name for model in CATALOGUE if f"`{model.name}`" not in page] == []
    for model in CATALOGUE:
        for figure in model.figures:
            assert " / ".join(f"{figure.miou[name]:.1f}" for name in SETS) in page, figure
