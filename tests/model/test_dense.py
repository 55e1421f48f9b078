"""Dense heads over a CLIP: equal to what their authors' codes computed for a small one (tests/golden)."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from helpers.pixels import random_photo
from helpers.small_model import PLAIN, SENTENCE, small_model
from torch import Tensor

from segclip import load
from segclip.checkpoints.native import load_model, save_model
from segclip.checkpoints.variants import change_grouping, change_head
from segclip.model import dense
from segclip.model.dense import HEADS, Around, neighbourhood, run_blocks
from segclip.model.grouping import k_means
from segclip.model.layers import DTYPES, Block, DType
from segclip.model.outputs import ImageOutput
from segclip.model.segclip import SegCLIP
from segclip.segment.encoder import Encoder
from segclip.segment.protocols.paper import region_owner

OFFSET = 0.1  # of all these codes, where positions are resized
# Their names where ours differ, and whether their arrays hold the class token too.
TAGS = {"qk": "vanilla"}


def normalise(photo: Tensor) -> Tensor:
    """By statistics that these codes have rounded."""
    mean, deviation = torch.tensor([122.771, 116.746, 104.094]), torch.tensor([68.501, 66.632, 70.323])
    return ((photo.float() - mean) / deviation).movedim(-1, 0)[None]


@torch.no_grad()
def regions(model: SegCLIP, photo: Tensor) -> Tensor:
    pixels = normalise(photo)
    return model.image.gather(model.image.encode_patches(pixels, offset=OFFSET), pixels).regions[0]


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("head", ["naclip", "sclip", "clearclip", "maskclip", "maskclip_kept", "qk"])
def test_features_and_cosines(clip: SegCLIP, heads: dict[str, Tensor], head: str, shape: str) -> None:
    found = regions(change_head(clip, head), heads[f"image.{shape}"])
    tag = f"{TAGS.get(head, head)}.{shape}"
    torch.testing.assert_close(found, heads[f"{tag}.features"][-len(found) :], atol=2e-5, rtol=0)
    cosines = F.normalize(found, dim=-1) @ heads["text.words"].T
    torch.testing.assert_close(cosines, heads[f"{tag}.cosines"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("head", HEADS)
def test_the_image_is_embedded_by_the_last_block_as_it_was(
    clip: SegCLIP, heads: dict[str, Tensor], head: str, shape: str
) -> None:
    model, pixels = change_head(clip, head), normalise(heads[f"image.{shape}"])
    with torch.no_grad():
        found = model.image.gather(model.image.encode_patches(pixels, offset=OFFSET), pixels).embedding[0]
    torch.testing.assert_close(found, heads[f"vanilla.{shape}.features"][0], atol=2e-5, rtol=0)


def test_positions_that_are_resized_by_size_are_others(clip: SegCLIP, heads: dict[str, Tensor]) -> None:
    pixels = normalise(heads["image.wide"])
    found = clip.encode_image(pixels).regions[0]
    assert (found - heads["naclip.wide.features"][1:]).abs().max() > 0.05


@pytest.mark.parametrize("shape", ["square", "wide"])
def test_the_width_of_naclips_gaussian(clip: SegCLIP, heads: dict[str, Tensor], shape: str) -> None:
    narrow = SegCLIP(replace(clip.config, head_sigma=1.5)).eval()
    narrow.load_state_dict(clip.state_dict())
    found = regions(narrow, heads[f"image.{shape}"])
    expected = heads[f"naclip_std1.5.{shape}.features"][1:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_neighbourhood(heads: dict[str, Tensor]) -> None:
    torch.testing.assert_close(neighbourhood((6, 10), 5.0), heads["naclip.omega.wide"], atol=1e-6, rtol=0)


def test_proxy_with_the_authors_affinities(clip: SegCLIP, heads: dict[str, Tensor]) -> None:
    z = F.normalize(heads["dino.square"].flatten(2).mT, dim=-1)
    with torch.no_grad():
        tokens = clip.image.encode_patches(normalise(heads["image.square"]))
        _, patches = run_blocks(
            HEADS["proxy"], cast(list[Block], list(clip.image.region_blocks)), tokens, Around((6, 6), 5.0, z)
        )
        found = (clip.image.norm_post(patches) @ clip.image.projection)[0]
    torch.testing.assert_close(found, heads["proxyclip.square.features"], atol=2e-5, rtol=0)


def test_proxy_asks_the_embedded_dinov2(clip: SegCLIP, tmp_path: Path) -> None:
    """Of any shape; each photo by itself; a blank one, on which all patches are alike, has finite features too."""
    model = change_head(clip, "proxy")
    assert model.config.affinity == load("mini", "cpu").config.image
    photos = torch.stack([torch.from_numpy(random_photo(64, 112)), torch.full((64, 112, 3), 7, dtype=torch.uint8)])
    pixels = model.image.normalise(photos)
    with torch.no_grad():
        both = model.encode_image(pixels)
        assert both.regions.isfinite().all() and both.regions.shape[1] == 4 * 7
        torch.testing.assert_close(model.encode_image(pixels[1:]).regions[0], both.regions[1], atol=1e-5, rtol=1e-5)
        other = clip.encode_image(pixels)
    assert (both.regions - other.regions).abs().max() > 0.1
    torch.testing.assert_close(both.embedding, other.embedding)  # no head changes what the whole photo shows

    save_model(model, tmp_path / "proxy.safetensors")
    again = load_model(tmp_path / "proxy.safetensors")
    assert again.config == model.config
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(pixels).regions, both.regions)


def test_each_patch_is_a_region(clip: SegCLIP) -> None:
    pixels = clip.image.normalise(torch.from_numpy(random_photo(64, 96))[None])
    with torch.no_grad():
        output = clip.image.gather(clip.image.encode_patches(pixels), pixels, each=True)
    each = torch.eye(24)[None]
    assert torch.equal(output.hard, each) and torch.equal(output.soft, each)
    assert output.patches is not None and torch.equal(output.patches, output.regions)
    assert output.features is not None and output.features.mean(dim=1).abs().max() < 1e-5


def test_the_patch_of_a_pixel_is_found_without_a_map_of_each() -> None:
    """As the maps would say it, of any shape; and where regions are no patches, as before."""
    regions = torch.zeros(2, 15, 4)
    each = torch.eye(15).expand(2, -1, -1)
    maps = F.interpolate(each.unflatten(-1, (3, 5)), (48, 80), mode="bilinear", align_corners=False)
    found = region_owner(ImageOutput(regions[:, 0], regions, each, each), (48, 80))
    assert torch.equal(found, maps.argmax(dim=1))
    swapped = each[:, torch.randperm(15, generator=torch.Generator().manual_seed(0))]
    found = region_owner(ImageOutput(regions[:, 0], regions, swapped, swapped), (48, 80))
    maps = F.interpolate(swapped.unflatten(-1, (3, 5)), (48, 80), mode="bilinear", align_corners=False)
    assert torch.equal(found, maps.argmax(dim=1))


def test_one_identity_serves_all_windows() -> None:
    """Not one for each: of a large photo it has ten million values."""
    output = Encoder(small_model(PLAIN))(torch.from_numpy(random_photo(64, 96))[None].expand(5, -1, -1, -1))
    joined = ImageOutput.cat([output])
    assert joined.soft.shape == (5, 24, 24) and joined.soft.untyped_storage().nbytes() == 24 * 24 * 4
    assert joined.soft.data_ptr() == joined.hard.data_ptr()


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@pytest.mark.parametrize("head", HEADS)
def test_lighter_numbers_give_nearly_the_same(head: str, dtype: DType) -> None:
    model, windows = change_head(small_model(PLAIN), head), torch.from_numpy(random_photo(64, 96))[None]
    full, light = Encoder(model)(windows, each=True), Encoder(model, dtype)(windows, each=True)
    for name, tensor in vars(full).items():
        own = getattr(light, name)
        assert own.dtype == torch.float32
        assert 0 <= (own - tensor).norm() / tensor.norm() < 0.02, name
    assert not torch.equal(light.regions, full.regions)


def test_several_blocks_can_have_the_head(clip: SegCLIP) -> None:
    image = replace(clip.config.image, trunk_layers=5, region_layers=2)
    model = SegCLIP(replace(clip.config, image=image)).eval()
    names = {"image.tower.trunk.5.": "image.region_blocks.0.", "image.region_blocks.0.": "image.region_blocks.1."}
    state = {}
    for name, tensor in clip.state_dict().items():
        old = next((prefix for prefix in names if name.startswith(prefix)), "")
        state[name.replace(old, names.get(old, ""), 1) if old else name] = tensor
    model.load_state_dict(state)
    pixels = clip.image.normalise(torch.from_numpy(random_photo(96, 96))[None])
    with torch.no_grad():
        one, two = clip.encode_image(pixels), model.encode_image(pixels)
    torch.testing.assert_close(two.embedding, one.embedding)
    assert (two.regions - one.regions).abs().max() > 0.1


def test_anyone_can_add_a_head(clip: SegCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "values twice", dense.Head(lambda q, k, v, around: 2 * v, reduced=True))
    pixels = clip.image.normalise(torch.from_numpy(random_photo(96, 96))[None])
    with torch.no_grad():
        twice, once = (change_head(clip, head).encode_image(pixels).regions for head in ("values twice", "maskclip"))
    assert (twice - once).abs().max() > 0.1


def test_a_head_that_cannot_be(clip: SegCLIP, tiny: SegCLIP, clip_file: Path) -> None:
    with pytest.raises(ValueError, match="head 'nacl'; known are naclip, sclip, clearclip, maskclip"):
        change_head(load(clip_file, "cpu"), "nacl")
    with pytest.raises(ValueError, match="this model's regions come of its centers, and only a CLIP without such has"):
        change_head(load("mini", "cpu"), "sclip")
    with pytest.raises(ValueError, match="head 'naclip' over an image tower without its class token"):
        replace(tiny.config, head="naclip")
    with pytest.raises(ValueError, match="head 'proxy' asks for another tower's features"):
        SegCLIP(replace(clip.config, head="proxy"))


def test_it_is_not_trained_as_it_is(clip: SegCLIP) -> None:
    pixels = clip.image.normalise(torch.from_numpy(random_photo(96, 96))[None])
    with pytest.raises(ValueError, match="dense head 'naclip', which has nothing to train: start a recipe"):
        clip.losses(pixels, torch.ones(1, 4, dtype=torch.long))


class TestKMeans:
    def test_regions_are_means_of_their_patches(self, clip: SegCLIP) -> None:
        model = change_grouping(clip, "k-means", 5)
        pixels = clip.image.normalise(torch.from_numpy(random_photo(96, 160))[None])
        with torch.no_grad():
            found, each = model.encode_image(pixels), clip.encode_image(pixels).regions[0]
        assert found.regions.shape[1] == 5
        hard = found.hard[0]
        assert torch.equal(hard.sum(dim=0), torch.ones(60)) and (hard.sum(dim=1) > 0).all()
        torch.testing.assert_close(found.soft.sum(dim=1), torch.ones(1, 60))
        for region, members in zip(found.regions[0], hard.bool(), strict=True):
            torch.testing.assert_close(region, each[members].mean(dim=0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.embedding, clip.encode_image(pixels).embedding)

    def test_two_halves_are_two_clusters(self, clip: SegCLIP) -> None:
        photo = torch.from_numpy(random_photo(96, 96)).clone()
        photo[:, :48], photo[:, 48:] = torch.tensor([250, 10, 10], dtype=torch.uint8), photo[:, :48].flip(0)
        with torch.no_grad():
            hard = change_grouping(clip, "k-means", 2).encode_image(clip.image.normalise(photo[None])).hard[0]
        owner = hard.argmax(dim=0).view(6, 6)
        assert (owner[:, :3] == owner[0, 0]).all()
        assert (owner[:, 3:] != owner[0, 0]).float().mean() > 0.8

    def test_a_photos_regions_do_not_depend_on_the_batch(self, clip: SegCLIP) -> None:
        model = change_grouping(clip, "k-means", 4)
        pixels = clip.image.normalise(torch.stack([torch.from_numpy(random_photo(96, 96, seed)) for seed in range(3)]))
        with torch.no_grad():
            together, alone = model.encode_image(pixels), model.encode_image(pixels[2:])
        assert torch.equal(together.hard[2:], alone.hard)
        torch.testing.assert_close(together.regions[2:], alone.regions, atol=1e-5, rtol=1e-5)

    def test_from_learned_centers(self, tiny: SegCLIP) -> None:
        """It moves patches between the centers, and what names a region stays the model's own."""
        refined = change_grouping(tiny, "refined")
        pixels = tiny.image.normalise(torch.from_numpy(random_photo(96, 96))[None])
        with torch.no_grad():
            before, after = tiny.encode_image(pixels), refined.encode_image(pixels)
        assert after.regions.shape == before.regions.shape
        assert 0 < (before.hard != after.hard).any(dim=1).float().mean() < 1
        assert refined.image.grouping.centers is tiny.image.grouping.centers  # shared, not copied

    def test_what_cannot_be(self, clip: SegCLIP, tiny: SegCLIP) -> None:
        with pytest.raises(ValueError, match="grouping 'kmeans'; known are centers, refined, k-means, patches"):
            change_grouping(clip, "kmeans")
        with pytest.raises(ValueError, match=r"grouping 'k-means' over regions .*center_in_region.* take 'refined'"):
            change_grouping(tiny, "k-means")
        with pytest.raises(ValueError, match=r"grouping refined of 3: not with this model, .* it takes k-means; or"):
            change_grouping(tiny, "refined", 3)
        with pytest.raises(ValueError, match="grouping 'patches' without a dense head; give a `head`"):
            change_grouping(tiny, "patches")
        with pytest.raises(ValueError, match=r"grouping refined: not with this model, .* it takes patches, k-means"):
            change_grouping(clip, "refined")


class TestKMeansOverLearnedWeights:
    """As in `mini`: regions without their center in them."""

    def test_a_region_is_made_of_its_patches_mean_as_by_the_centers(self, tmp_path: Path) -> None:
        image = replace(SENTENCE.image, region_layers=0)
        learned = small_model(replace(SENTENCE, image=image, center_in_region=False))
        model = change_grouping(learned, "k-means", 3)
        pixels = model.image.normalise(torch.from_numpy(random_photo(56, 84))[None])
        with torch.no_grad():
            patches = model.image.encode_patches(pixels)
            found = model.image.gather(patches, each=True)
            grouping = learned.image.grouping
            values = grouping.value(grouping.norm_patches(patches))[0]
            means = torch.stack([values[members].mean(dim=0) for members in found.hard[0].bool()])[None]
            _, expected = learned.image.embed_regions(grouping._finish(torch.zeros_like(means), means))
        torch.testing.assert_close(found.regions, expected)
        assert found.patches is not None and found.patches.shape == (1, 24, 64)
        assert found.features is not None and found.features.mean(dim=1).abs().max() < 1e-5

        model.save_pretrained(tmp_path / "folder")
        save_model(model, tmp_path / "model.safetensors")
        for path in (tmp_path / "folder", tmp_path / "model.safetensors"):
            again = load(path, "cpu")
            assert again.config == model.config and again.reconstruction is None
            with torch.no_grad():
                torch.testing.assert_close(again.encode_image(pixels).regions, found.regions)

    def test_mini_takes_any_number(self) -> None:
        mini = load("mini", "cpu")
        model = change_grouping(mini, "k-means", 5)
        pixels = model.image.normalise(torch.from_numpy(random_photo(56, 84))[None])
        with torch.no_grad():
            output = model.encode_image(pixels)
        assert output.regions.shape == (1, 5, 384) and output.regions.isfinite().all()
        assert model.image.projection is mini.image.projection  # shared, not copied

    def test_it_is_not_trained(self) -> None:
        model = change_grouping(small_model(replace(SENTENCE, center_in_region=False)), "k-means")
        pixels = model.image.normalise(torch.from_numpy(random_photo(56, 56))[None])
        with pytest.raises(ValueError, match="a model with the grouping 'k-means', which has nothing to train"):
            model.losses(pixels, torch.ones(1, 4, dtype=torch.long))


def test_a_cluster_without_patches_is_drawn_nowhere() -> None:
    """Else its region, which nothing made, would own pixels."""
    x = F.normalize(torch.tensor([[[1.0, 0.1], [1.0, 0.2], [-1.0, 0.1]]]), dim=-1)
    start = F.normalize(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]]), dim=-1)
    hard, soft = k_means(x, start)
    assert hard[0].tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert soft[0, 2].abs().max() == 0
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(1, 3))


def test_more_clusters_than_kinds_of_patches(clip: SegCLIP) -> None:
    """Of a photo of four patches too, and of a blank one: as many regions as ever, some without patches."""
    model = change_grouping(clip, "k-means", 6)
    for photo in (random_photo(32, 32), random_photo(32, 32) * 0):
        with torch.no_grad():
            output = model.encode_image(model.image.normalise(torch.from_numpy(photo)[None]))
        assert output.regions.shape[1] == 6 and output.regions.isfinite().all() and output.soft.isfinite().all()
        assert torch.equal(output.hard.sum(dim=1), torch.ones(1, 4))
        assert output.soft[output.hard.sum(dim=-1) == 0].abs().sum() == 0
