"""What a paper sweeps of the grouping and the masked branch is a field, and does what it says."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from helpers.small_model import CLIP, small_model

from segclip.config import ModelConfig
from segclip.model.grouping import CenterBlock, CenterGrouping, sample_gumbel
from segclip.model.layers import Block
from segclip.model.reconstruction import visible_count


def test_a_configuration_of_0_1_has_the_papers_values() -> None:
    known = asdict(CLIP)
    for name in ("grouping", "center_in_region", "tau", "center_blocks", "mask_ratio", "decoder_heads"):
        del known[name]
    for name in ("heads", "mlp_ratio", "activation"):
        del known["image"][name]
    for name in ("mlp_ratio", "activation", "tokenizer", "adapter"):
        del known["text"][name]
    assert ModelConfig.from_json(json.dumps(known)) == CLIP
    assert ModelConfig.from_json(CLIP.to_json()) == CLIP


def test_tau_is_the_temperature_of_the_gradient() -> None:
    """d softmax / d logits is larger where the temperature is lower."""
    patches, size = torch.randn(2, 16, 64), []
    gumbel = sample_gumbel((2, 4, 16), like=patches)
    for tau in (0.9, 0.3):
        grouping = small_model(replace(CLIP, tau=tau)).image.grouping
        found = grouping(patches, gumbel)
        assert found.hard.detach().amax(dim=1).allclose(torch.ones(2, 16))
        (by_centers,) = torch.autograd.grad(found.hard.square().sum(), grouping.centers)
        size.append(by_centers.norm())
    assert size[0] != size[1]


def test_center_blocks_and_decoder_heads() -> None:
    model = small_model(replace(CLIP, center_blocks=3, decoder_heads=4))
    assert sum(isinstance(module, CenterBlock) for module in model.modules()) == 3
    assert model.reconstruction
    decoder = [module for module in model.reconstruction.decoder if isinstance(module, Block)]
    assert [block.attention.heads for block in decoder] == [4]


@pytest.mark.parametrize("mask_ratio", [0.5, 0.75, 0.9])
def test_mask_ratio_is_the_share_of_patches_that_are_not_seen(mask_ratio: float) -> None:
    model = small_model(replace(CLIP, mask_ratio=mask_ratio))
    pixels = torch.randn(2, 3, 128, 128)
    visible = model.draw_noise(pixels).gumbel_visible.shape[-1]
    assert visible == visible_count(64, mask_ratio)
    assert visible / 64 == pytest.approx(1 - mask_ratio, abs=0.03)
    losses = model.losses(pixels, torch.ones(2, 4, dtype=torch.int64))
    assert losses.reconstruction > 0


ALONE = replace(CLIP, center_in_region=False, image=replace(CLIP.image, region_layers=0))


@pytest.mark.parametrize("center_in_region", [True, False])
def test_without_its_center_a_region_knows_of_its_own_patches_alone(center_in_region: bool) -> None:
    image = small_model(replace(ALONE, center_in_region=center_in_region)).image
    patches = torch.randn(1, 16, 64)
    other_photo = patches.clone()
    other_photo[0, 0] += 0.3 * torch.randn(64)
    before, after = image.gather(patches), image.gather(other_photo)
    held = before.hard[0].any(dim=1) & (before.hard[0] == after.hard[0]).all(dim=1)
    apart = held & (before.hard[0, :, 0] == 0)  # regions of the same patches, without the one that changed
    assert apart.sum() >= 2 and not torch.equal(before.embedding, after.embedding)
    difference = (before.regions - after.regions)[0, apart].abs().amax(dim=1)
    assert (difference > 1e-4).all() if center_in_region else (difference < 1e-5).all()


def test_center_in_region_can_be_changed_over_weights() -> None:
    """It adds no parameter."""
    assert (
        small_model(ALONE).state_dict().keys() == small_model(replace(ALONE, center_in_region=True)).state_dict().keys()
    )


@pytest.mark.parametrize("config", [ALONE, CLIP])
def test_a_patch_alone_is_what_a_region_of_it_is(config: ModelConfig) -> None:
    """A photo of one patch: the region that takes it, and the patch by itself."""
    image = small_model(replace(config, image=replace(config.image, region_layers=0))).image
    patch = torch.randn(3, 1, 64)
    found = image.gather(patch, each=True)
    assert found.patches is not None and found.patches.shape == (3, 1, 64)
    assert found.features is not None
    torch.testing.assert_close(found.features, patch - image.grouping.centers.mean(dim=0))
    own = (found.hard.mT @ found.regions)[:, 0]
    torch.testing.assert_close(found.patches[:, 0], own)


def test_each_patch_of_a_photo_is_what_it_would_be_alone() -> None:
    image = small_model(ALONE).image
    patches = torch.randn(2, 16, 64)
    found, plain = image.gather(patches, each=True), image.gather(patches)
    assert plain.patches is None and plain.features is None
    assert torch.equal(found.regions, plain.regions) and torch.equal(found.embedding, plain.embedding)
    alone = image.gather(patches.flatten(0, 1)[:, None], each=True)
    assert found.patches is not None and alone.patches is not None
    torch.testing.assert_close(found.patches.flatten(0, 1), alone.patches[:, 0])


def test_a_grouping_that_does_not_say_what_a_patch_alone_is_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.delattr(CenterGrouping, "gather_each")
    found = model.image.gather(torch.randn(1, 16, 64), each=True)
    assert found.patches is None and found.features is not None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tau": 0.0}, "tau 0.0; give a temperature above 0"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0; give a share"),
        ({"decoder_heads": 5}, "half of image.width 32 is not a multiple of 5"),
        ({"image": replace(CLIP.image, heads=5)}, "image.width 64 is not a multiple of 5"),
    ],
)
def test_configurations_that_cannot_be(change: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(CLIP, **change)
