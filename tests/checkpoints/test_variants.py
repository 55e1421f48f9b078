"""The same weights with another head or grouping, in every format; and as the start of a training."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State
from helpers.small_model import CLIP, PLAIN, small_model

from segclip.checkpoints.clip_weights import config_with_centers
from segclip.checkpoints.loading import convert, load
from segclip.checkpoints.native import save_model
from segclip.checkpoints.variants import load_to_train, vary
from segclip.config import ModelConfig
from segclip.model.dense import HEADS
from segclip.model.segclip import SegCLIP
from segclip.train.config import TrainConfig
from segclip.train.initialization import check_recipe, initialize_model
from segclip.train.resolve import resolve

VARIANTS: tuple[dict[str, Any], ...] = ({"head": "sclip"}, {"head": "proxy"}, {"grouping": "k-means", "centers": 5})


def same(model: SegCLIP, other: SegCLIP) -> bool:
    expected = other.state_dict()
    return model.config == other.config and all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())


def test_a_plain_clip_loads_without_a_warning(openai: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(openai, tmp_path / "clip.pt")
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path / "clip.pt", "cpu")
    assert not caplog.records
    image = model.config.image
    assert (model.config.head, image.trunk_layers, image.region_layers) == ("naclip", 11, 1)
    assert model.config.grouping == "patches" and not model.training
    count = sum(tensor.numel() for name, tensor in openai.items() if tensor.ndim or name == "logit_scale")
    assert sum(p.numel() for p in model.parameters()) == count, "nothing that the file lacks"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_saved_in_every_way(variant: dict, tmp_path: Path) -> None:
    model = vary(small_model(PLAIN), **variant)
    assert model.config != PLAIN
    save_model(model, tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "converted.safetensors")
    model.save_pretrained(tmp_path / "folder")
    for path in ("m.safetensors", "converted.safetensors", "folder"):
        assert same(load(tmp_path / path, "cpu"), model), path
    assert SegCLIP.from_pretrained(str(tmp_path / "folder")).config == model.config


def test_a_variant_shares_its_weights() -> None:
    model = small_model(PLAIN)
    assert vary(model) is model and vary(model, head="naclip") is model
    for variant in VARIANTS:
        varied = dict(vary(model, **variant).named_parameters())
        assert all(varied[name] is own for name, own in model.named_parameters()), variant
    varied = vary(model, head="proxy")
    assert vary(varied, head="naclip").config == PLAIN, "and back"
    assert {name.split(".")[1] for name in varied.state_dict() if name.startswith("image.")} == {
        "affinity", "norm_post", "projection", "region_blocks", "tower",
    }  # fmt: skip


def test_the_second_tower_is_minis() -> None:
    mini, own = load("mini", "cpu"), vary(small_model(PLAIN), head="proxy").image.affinity
    pixels = torch.randn(1, 3, 70, 84)
    assert own
    with torch.inference_mode():
        assert torch.equal(own(pixels), mini.image.encode_patches(pixels))


@pytest.mark.parametrize(
    ("config", "variant", "why"),
    [
        (CLIP, {"head": "naclip"}, "head 'naclip': this model's regions come of its centers"),
        (PLAIN, {"head": "naclp"}, "head 'naclp'; known are naclip, "),
        (PLAIN, {"grouping": "centers"}, "grouping centers: not with this model, .* it takes patches, k-means"),
        (CLIP, {"grouping": "patches"}, "grouping 'patches' without a dense head; give a `head`, or another grouping"),
        (CLIP, {"grouping": "k-means"}, "grouping 'k-means' over regions .*center_in_region.* take 'refined'"),
        (CLIP, {"grouping": "k-mean"}, "grouping 'k-mean'; known are "),
        (CLIP, {"grouping": "refined", "centers": 9}, "grouping refined of 9: not with this model"),
        (PLAIN, {"grouping": "k-means", "centers": 0}, "centers 0; expected a whole number"),
    ],
)
def test_variants_that_cannot_be(config: ModelConfig, variant: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        vary(small_model(config), **variant)


def test_training_starts_from_a_plain_clip_in_any_format(tmp_path: Path) -> None:
    """Its last two blocks run over the regions, as they always did; head and grouping of the file do not matter."""
    plain = small_model(PLAIN)
    save_model(vary(plain, head="proxy"), tmp_path / "clip.safetensors")
    image = replace(CLIP.image, trunk_layers=1, region_layers=2)
    expected = replace(CLIP, image=image, decoder_layers=3, centers=8)
    resolved = resolve(TrainConfig(init_from=str(tmp_path / "clip.safetensors")))
    assert resolved.model == config_with_centers(PLAIN) == expected
    other = replace(expected, centers=6, decoder_layers=1)
    assert resolve(TrainConfig(init_from=str(tmp_path / "clip.safetensors"), model=other)).model == other
    found = load_to_train(str(tmp_path / "clip.safetensors"))
    kept = {
        "tower.trunk.0": "tower.trunk.0",
        "region_blocks.0": "tower.trunk.1",
        "region_blocks.1": "region_blocks.0",
    }
    for ours, theirs in kept.items():
        own, given = found.image.get_submodule(ours).state_dict(), plain.image.get_submodule(theirs).state_dict()
        assert all(torch.equal(tensor, given[name]) for name, tensor in own.items())
    assert torch.equal(found.image.tower.positions, plain.image.tower.positions)
    own, given = found.text.state_dict(), plain.text.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in own.items())
    model = initialize_model(resolved)
    losses = model.losses(torch.randn(2, 3, 64, 64), model.tokenize(["a cat", "a dog"]))
    assert losses.total.isfinite() and losses.reconstruction > 0


def test_a_clip_of_two_blocks_is_too_small_to_train() -> None:
    with pytest.raises(ValueError, match="an image tower of 2 blocks; expected at least 3"):
        config_with_centers(replace(PLAIN, image=replace(PLAIN.image, trunk_layers=1)))


def test_a_recipe_of_what_cannot_learn_says_so() -> None:
    with pytest.raises(ValueError, match="grouping 'k-means' has nothing to learn"):
        check_recipe(TrainConfig(model=replace(CLIP, grouping="k-means", center_in_region=False)))


def test_every_head_has_a_model() -> None:
    model = small_model(PLAIN)
    regions = {head: vary(model, head=head).encode_image(torch.ones(1, 3, 64, 64)).regions for head in HEADS}
    assert all(one.shape == (1, 16, 64) and one.isfinite().all() for one in regions.values())
