"""What a recipe may be, which parameters it trains, and how fast."""

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

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
from segclip.train.run_files import read_recipe

TINY = GOLDEN / "tiny.bin"  # small weights as the authors store them


@pytest.mark.parametrize(
    ("change", "why"),
    [
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


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("lr", -1.0, "a number from 0 on"),
        ("lr", math.nan, "a number from 0 on"),
        ("lr", "fast", "a number from 0 on"),
        ("slow_lr", -4e-6, "a number from 0 on"),
        ("weight_decay", math.inf, "a number from 0 on"),
        ("batch", 0, "at least 1"),
        ("batch", 2.5, "a whole number, at least 1"),
        ("batch", True, "a whole number, at least 1"),
        ("batch", None, "a whole number, at least 1"),
        ("steps", -1, "at least 1"),
        ("workers", -1, "at least 0"),
        ("seed", -3, "at least 0"),
        ("warmup", 1, "a share from 0 to below 1"),
        ("eps", 0, "a number above 0"),
        ("max_grad_norm", -1.0, "a number above 0"),
        ("soft_target_scale", math.nan, "a number above 0"),
        ("words_power", math.nan, "at least 1"),
        ("betas", [0.9], "two numbers in a list"),
        ("betas", [0.9, math.nan], "two numbers in a list"),
        ("crop_scale", 0.5, "two numbers in a list"),
        ("frozen", "text.", "texts in a list"),
        ("slow", [1], "texts in a list"),
        ("trackers", [None], "texts in a list"),
        ("losses", 3, "names with their values"),
        ("captions", "some", "one of one, all"),
        ("precision", 16, "one of fp32, bf16"),
        ("compile", "yes", "true or false"),
        ("init_from", 5, "a text"),
        ("cache.crops", 0, "at least 1"),
        ("cache.patches", -5, "at least 1"),
        ("cache.reconstruction_fraction", math.nan, "a share above 0, to 1"),
        ("cache.reconstruction_fraction", 0.0, "a share above 0, to 1"),
        ("cache.folder", 1, "a text"),
        ("cache.seed", -1, "at least 0"),
    ],
)
def test_a_recipe_edited_by_hand_names_what_is_wrong(field: str, value: object, expected: str, tmp_path: Path) -> None:
    """And so does one that is built with such a value; a value of another type too."""
    raw = json.loads(CACHED.to_json())
    *inner, name = field.split(".")
    (raw[inner[0]] if inner else raw)[name] = value
    why = f"{field} {tuple(value) if isinstance(value, list) else value!r}; give {expected}"
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        TrainConfig.from_json(json.dumps(raw))
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": raw, "data": "shards"}))
    with pytest.raises(ValueError, match=rf"recipe\.json: {re.escape(why)}$"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("weight", [math.nan, math.inf, "much", None, True])
def test_a_losss_weight_is_a_number(weight: object) -> None:
    raw = json.loads(CACHED.to_json())
    raw["losses"]["contrastive"] = weight
    with pytest.raises(ValueError, match=rf"^weight {weight!r} of the loss contrastive; give a number from 0 on$"):
        TrainConfig.from_json(json.dumps(raw))


def test_every_number_of_a_recipe_has_a_range() -> None:
    """But betas and crop_scale, whose two are checked together, and losses."""
    for kind, known in ((TrainConfig, {"betas", "crop_scale"}), (CacheConfig, set())):
        for one in fields(kind):
            value = -math.inf if "float" in str(one.type) else -(10**9)
            if one.name not in known and re.search(r"\b(int|float)\b", str(one.type)) and one.name != "losses":
                change: dict[str, Any] = {one.name: value}
                with pytest.raises(ValueError, match=rf"{one.name} -"):
                    kind(**change)


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
