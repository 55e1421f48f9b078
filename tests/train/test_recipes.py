"""What a recipe may be, which parameters it trains, and how fast."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN
from helpers.formats import to_openai
from helpers.small_model import ADAPTED, SENTENCE, small_model
from helpers.small_runs import CACHED, PAIRS

from segclip import load
from segclip.checkpoints.clip_weights import config_with_centers
from segclip.checkpoints.native import save_model
from segclip.config import ModelConfig
from segclip.train.config import CacheConfig, TrainConfig
from segclip.train.optim import freeze, learning_rate, make_optimiser
from segclip.train.recipes import INPUTS, TOWERS, mini, paper
from segclip.train.resolve import resolve

TINY = GOLDEN / "tiny.bin"  # small weights as the authors store them


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cache": CacheConfig(reconstruction_fraction=0.0)}, r"reconstruction_fraction 0\.0; give a share above 0"),
        ({"words_power": 0.5}, r"words_power 0\.5; give at least 1"),
        ({"micro_batch": 2}, "leave out micro_batch"),
        ({"init_from": None}, "name their model as init_from"),
        ({"losses": {}}, "no losses; give a weight above 0"),
        ({"losses": {"contrastive": 0.0}}, "no losses; give a weight above 0"),
        ({"losses": {"contrastive": -1.0}}, "weight -1.0 of the loss contrastive; give a number from 0 on"),
        ({"save_every": 0}, "save_every 0; give at least 1"),
        ({"crop_scale": (0.5, 1.2)}, r"crop_scale 0\.5 1\.2; give two shares"),
        ({"betas": (0.9, 1.0)}, r"betas 0\.9 1\.0; give two numbers from 0 to below 1"),
        ({"label_smoothing": 0.0}, r"label_smoothing 0\.0; give a share between 0 and 1"),
    ],
)
def test_recipes_that_cannot_be(change: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(CACHED, **change)


def test_a_recipe_survives_its_json() -> None:
    for config in (paper(), mini(), CACHED, PAIRS):
        assert TrainConfig.from_json(config.to_json()) == config
    raw = json.loads(paper().to_json())
    raw |= {"losses": ["contrastive", "superpixel", "reconstruction"], "slow": ["image.trunk", "text.", "logit_scale"]}
    raw["frozen"] = [name.replace("image.tower.", "image.") for name in raw["frozen"]]
    assert TrainConfig.from_json(json.dumps(raw)) == paper()  # as 0.1 wrote it
    with pytest.raises(ValueError, match="not a training recipe"):
        TrainConfig.from_json('{"lr": 1}')


def test_a_recipes_model_is_that_of_its_weights_or_the_papers(tmp_path: Path) -> None:
    assert resolve(paper()).model == ModelConfig()
    assert resolve(mini()).model == load("mini").config
    ours, clip = tmp_path / "ours.safetensors", TINY
    save_model(small_model(SENTENCE), ours)
    for path in (ours, clip):
        assert resolve(TrainConfig(init_from=str(path))).model == load(path).config
    twelve = replace(SENTENCE, centers=12)
    assert resolve(TrainConfig(init_from=str(ours), model=twelve)).model == twelve
    deep = replace(SENTENCE, text=replace(SENTENCE.text, layers=2))
    with pytest.raises(ValueError, match=r"model\.text\.layers 2; the weights of init_from, .*, have 1, and over"):
        resolve(TrainConfig(init_from=str(ours), model=deep))
    with pytest.raises(ValueError, match="no such file"):
        resolve(TrainConfig(init_from=str(tmp_path / "none.pt")))


def test_a_lone_clip_leaves_the_decoder_free(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.save(to_openai(torch.load(TINY, weights_only=True)), path)
    known = config_with_centers(load(path).config)
    deep = replace(known, centers=5, decoder_layers=1)
    assert resolve(TrainConfig(init_from=str(path), model=deep)).model == deep
    with pytest.raises(
        ValueError,
        match=r"model\.embed 3; .* have 64, and over weights only centers, .*decoder_layers.* can be changed",
    ):
        resolve(TrainConfig(init_from=str(path), model=replace(known, embed=3)))


def test_learning_rate() -> None:
    assert learning_rate(15, 200, 4e-3, 0.15) == pytest.approx(2e-3)  # x = 0.075, half of the way up
    assert learning_rate(30, 200, 4e-3, 0.15) == pytest.approx(4e-3)
    assert learning_rate(115, 200, 4e-3, 0.15) == pytest.approx(2e-3)  # half of the way down
    assert learning_rate(200, 200, 4e-3, 0.15) == pytest.approx(0, abs=1e-12)


def test_the_papers_groups() -> None:
    """Spec of arXiv 2211.14813's code: what is frozen, what learns slowly, what decays."""
    config = paper()
    assert (config.lr, config.slow_lr, config.batch, config.epochs, config.max_grad_norm) == (4e-3, 4e-6, 768, 10, 1.0)
    model = small_model()
    freeze(model, config)
    optimiser = make_optimiser(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group["peak"], group["weight_decay"])
        for group in optimiser.param_groups
        for p in group["params"]
    }
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in names.values() if name.startswith(INPUTS)} and len(frozen) == 7
    assert found.keys() == set(names.values()) - frozen
    for name, (peak, decay) in found.items():
        slow = name.startswith(
            ("image.tower.trunk.", "text.blocks.", "text.norm_final.", "text.projection", "logit_scale")
        )
        assert peak == (4e-6 if slow else 4e-3), name
        assert decay == (0.0 if name.endswith(".bias") else 0.05), name
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.98) and optimiser.param_groups[0]["eps"] == 1e-6


def test_minis_groups() -> None:
    model = small_model(ADAPTED)
    freeze(model, CACHED)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimiser(model, CACHED).param_groups
    found = {names[id(p)]: (group["peak"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == {name for name in names.values() if not name.startswith(TOWERS)}
    assert found["image.projection"] == found["logit_scale"] == found["image.norm_post.weight"] == (2e-3, 0.05)
    assert found["image.grouping.centers"] == found["image.grouping.key.weight"] == (2e-4, 0.05)
    assert found["image.grouping.norm_key.bias"] == (2e-4, 0)
    assert found["text_adapter.fc1.weight"] == found["text_adapter.fc2.weight"] == (2e-3, 0.05)
    with pytest.raises(ValueError, match=r"no parameter's name begins with 'image\.tower\.trunks'"):
        freeze(model, replace(CACHED, frozen=("image.tower.trunks",)))


def test_what_no_loss_reaches_is_not_trained() -> None:
    model = small_model()
    freeze(model, replace(PAIRS, slow=(), losses={"contrastive": 1.0, "reconstruction": 0.0}))
    idle = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert idle == {
        "image.tower.class_token",
        *(name for name, _ in model.named_parameters() if name.startswith("reconstruction.")),
    }
