"""The model computes what the authors' code does (golden arrays), and its CLIP towers what transformers' CLIP does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segclip.checkpoints import authors
from segclip.checkpoints.clip_weights import add_centers, our_name
from segclip.checkpoints.loading import load
from segclip.checkpoints.variants import change_head
from segclip.model.segclip import Noise, SegCLIP

if TYPE_CHECKING:
    from transformers import CLIPModel


def assert_close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("size", ["", "_2x"])
def test_image_outputs_equal_the_authors(tiny: SegCLIP, golden: dict[str, Tensor], size: str) -> None:
    with torch.no_grad():
        output = tiny.encode_image(golden["image" + size])
    assert_close(output.embedding, golden["image_embed" + size])
    assert_close(output.regions, golden["group_embeds" + size])
    assert_close(output.soft, golden["soft_assignment" + size])
    assert torch.equal(output.hard, golden["hard_assignment" + size])


def test_text_embeddings_equal_the_authors(tiny: SegCLIP, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        assert_close(tiny.encode_text(golden["token_ids"]), golden["text_embed"])


def test_losses_and_gradients_equal_the_authors(
    tiny_bin: Path, golden: dict[str, Tensor], golden_losses: dict[str, Any]
) -> None:
    model = load(tiny_bin, "cpu")
    noise = Noise(golden["gumbel_noise_full"], golden["mask_noise"], golden["gumbel_noise_visible"])
    losses = model.losses(golden["image"], golden["train_token_ids"], golden["superpixels"], noise=noise)
    contrastive = golden_losses["contrastive"]
    assert losses.contrastive.item() == pytest.approx(contrastive, abs=5e-5)
    assert losses.superpixel.item() == pytest.approx(golden_losses["with_superpixel"] - contrastive, abs=5e-5)
    assert losses.reconstruction.item() == pytest.approx(golden_losses["with_reconstruction"] - contrastive, abs=5e-5)
    assert losses.total.item() == pytest.approx(golden_losses["total"], abs=5e-5)

    losses.total.backward()
    parameters = dict(model.named_parameters())
    norms = {our_name(name, authors.RULES): norm for name, norm in golden_losses["grad_norms"].items()}
    assert norms.keys() == parameters.keys()
    for name, norm in norms.items():
        gradient = parameters[name].grad
        found = 0.0 if gradient is None else gradient.norm().item()
        assert found == pytest.approx(norm, rel=1e-4, abs=1e-10), name


def test_without_superpixels_their_loss_is_zero(tiny: SegCLIP, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        losses = tiny.losses(golden["image"], golden["train_token_ids"])
    assert losses.superpixel.item() == 0
    assert losses.total.item() == pytest.approx((losses.contrastive + losses.reconstruction).item())


def test_an_image_does_not_depend_on_its_batch(tiny: SegCLIP, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        batch, alone = tiny.encode_image(golden["image"]), tiny.encode_image(golden["image"][:1])
    assert len(golden["image"]) > 1
    assert torch.equal(batch.hard[:1], alone.hard)
    for name in ("embedding", "regions", "soft"):
        assert_close(getattr(batch, name)[:1], getattr(alone, name))


def test_a_side_that_is_no_multiple_of_the_patch_is_an_error(tiny: SegCLIP) -> None:
    with pytest.raises(ValueError, match="image side 100 is not a multiple of the patch 16"):
        tiny.encode_image(torch.zeros(1, 3, 96, 100))
    with pytest.raises(ValueError, match="image side 8 is not a multiple"):
        tiny.losses(torch.zeros(1, 3, 8, 96), torch.ones(1, 3, dtype=torch.int64))


def test_a_text_longer_than_the_context_is_an_error(tiny: SegCLIP) -> None:
    with pytest.raises(ValueError, match="78 tokens; the model takes at most 77"):
        tiny.encode_text(torch.ones(1, 78, dtype=torch.int64))


def test_superpixels_of_another_grid_are_an_error(tiny: SegCLIP, golden: dict[str, Tensor]) -> None:
    superpixels = torch.zeros(len(golden["image"]), 5, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="one id per patch"):
        tiny.losses(golden["image"], golden["train_token_ids"], superpixels)


@pytest.fixture(scope="module", params=[("quick_gelu", 64), ("gelu", 32)])
def clip(request: pytest.FixtureRequest) -> "CLIPModel":
    """transformers' CLIP, small, of random weights in which a swapped or forgotten tensor shows."""
    transformers = pytest.importorskip("transformers")  # make test-lowest has none
    torch.manual_seed(0)
    activation, head = request.param
    text = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 128 // head,
        "hidden_act": activation,
        "vocab_size": 300,
        "max_position_embeddings": 20,
        "bos_token_id": 298,
        "eos_token_id": 299,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 5,
        "num_attention_heads": 192 // head,
        "hidden_act": activation,
        "image_size": 64,
        "patch_size": 8,
    }
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=96)
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def from_clip(clip: "CLIPModel", tmp_path_factory: pytest.TempPathFactory) -> SegCLIP:
    """Its weights, in towers that have its activation and its heads, as its config.json tells."""
    folder = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(folder)
    return load(folder, "cpu")


def test_text_tower_equals_transformers(clip: "CLIPModel", from_clip: SegCLIP) -> None:
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(1, 298, (4, 20), generator=generator)
    token_ids[:, 0] = 298
    for row, end in enumerate((19, 5, 1, 12)):
        token_ids[row, end], token_ids[row, end + 1 :] = 299, 0
    with torch.no_grad():
        expected = clip(input_ids=token_ids, pixel_values=torch.zeros(1, 3, 64, 64)).text_embeds
        assert_close(F.normalize(from_clip.encode_text(token_ids), dim=-1), expected)
        expected = clip.text_projection(clip.text_model(input_ids=token_ids).pooler_output)
        assert_close(from_clip.encode_text(token_ids), expected)
        assert_close(from_clip.encode_text(token_ids[1:, :13]), expected[1:])  # their ends are within 13 tokens


def test_image_tower_equals_transformers(clip: "CLIPModel", from_clip: SegCLIP) -> None:
    """transformers' embeddings without the class token, then its own first blocks; its last two over our regions."""
    from_clip = add_centers(from_clip)
    vision, layers = clip.vision_model, clip.vision_model.encoder.layers
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = vision.pre_layrnorm(vision.embeddings(pixels))[:, 1:]
        for layer in layers[:-2]:
            expected = run(layer, expected)
        patches = from_clip.image.encode_patches(pixels)
        assert_close(patches, expected)

        regions = from_clip.image.grouping(patches).regions
        image, embedded = from_clip.image.embed_regions(regions)
        for layer in layers[-2:]:
            regions = run(layer, regions)
        assert_close(embedded, clip.visual_projection(vision.post_layernorm(regions)))
        assert_close(image, clip.visual_projection(vision.post_layernorm(regions.amax(dim=1))))


def test_a_clip_as_it_is_equals_transformers(clip: "CLIPModel", from_clip: SegCLIP) -> None:
    """The class token runs through all blocks; a dense head changes no embedding of the whole image."""
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output = clip.vision_model(pixels, output_hidden_states=True)
        assert_close(from_clip.image.encode_patches(pixels), output.hidden_states[-2], atol=2e-5)
        for head in ("naclip", "qk"):
            found = change_head(from_clip, head).encode_image(pixels)
            assert_close(found.embedding, clip.visual_projection(output.pooler_output), atol=2e-5)
        # With its own attention, a patch says what transformers' last hidden state says of it.
        last = clip.visual_projection(clip.vision_model.post_layernorm(output.last_hidden_state[:, 1:]))
        assert_close(found.regions, last, atol=2e-5)


def run(layer: nn.Module, tokens: Tensor) -> Tensor:
    output = layer(tokens, attention_mask=None)
    return output[0] if isinstance(output, tuple) else output
