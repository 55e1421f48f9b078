"""The `dinov2` and `sentence` towers agree with transformers' models of the same random weights."""

import pytest
import torch
from torch import Tensor

from segclip.config import ImageConfig, ModelConfig, TextConfig
from segclip.model.layers import LayerScale
from segclip.model.segclip import SegCLIP

transformers = pytest.importorskip("transformers")  # make test-lowest has none

CONFIG = ModelConfig(
    image=ImageConfig("dinov2", width=128, trunk_layers=3, region_layers=1, patch=14, side=56, position_grid=4),
    text=TextConfig("sentence", width=64, layers=2, heads=4, context=32, vocabulary=100),
    embed=64,
    centers=4,
    decoder_layers=1,
)


def randomise(module: torch.nn.Module) -> None:
    """Give every parameter, norms and scales too, a value that a mistake would show in."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.1, generator=generator)


def renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Their tensors under our names; `names` maps parts of a name to ours, in order."""
    result = {}
    for name, value in weights.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        result[name] = value
    return result


def join_projections(weights: dict[str, Tensor], query: str, key: str, value: str) -> dict[str, Tensor]:
    """Separate projections of queries, keys and values -> one `in_proj`."""
    result = {name: tensor for name, tensor in weights.items() if query not in name}
    for name in weights.keys() - result.keys():
        parts = [weights[name]] + [result.pop(name.replace(query, part)) for part in (key, value)]
        result[name.replace(query, "in_proj")] = torch.cat(parts)
    return result


@pytest.fixture(scope="module")
def model() -> SegCLIP:
    torch.manual_seed(0)
    return SegCLIP(CONFIG).eval()


def test_dinov2_tower(model: SegCLIP) -> None:
    image = CONFIG.image
    theirs = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=image.width,
            num_hidden_layers=image.trunk_layers,
            num_attention_heads=model.image.tower.heads,
            patch_size=image.patch,
            image_size=image.side,
        )
    ).eval()
    randomise(theirs)
    names = {
        "embeddings.cls_token": "class_token",
        "embeddings.position_embeddings": "positions",
        "embeddings.patch_embeddings.projection": "patch_embed",
        "encoder.layer.": "trunk.",
        "layernorm": "norm_trunk",
        "attention.o_proj": "attention.out_proj",
        "layer_scale1.lambda1": "scale1.weight",
        "layer_scale2.lambda1": "scale2.weight",
    }
    weights = renamed(theirs.state_dict(), names)
    del weights["embeddings.mask_token"]
    weights["class_token"], weights["positions"] = weights["class_token"].flatten(), weights["positions"][0]
    model.image.tower.load_state_dict(join_projections(weights, "q_proj", "k_proj", "v_proj"))
    assert isinstance(model.image.tower.trunk[0].scale1, LayerScale)

    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).last_hidden_state[:, 1:]
        torch.testing.assert_close(model.image.encode_patches(pixels), expected, atol=1e-5, rtol=1e-5)


def test_sentence_tower_is_the_mean_of_berts_tokens(model: SegCLIP) -> None:
    text = CONFIG.text
    theirs = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=text.vocabulary,
            hidden_size=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            intermediate_size=4 * text.width,
            max_position_embeddings=text.context,
        ),
        add_pooling_layer=False,
    ).eval()
    randomise(theirs)
    names = {
        "embeddings.word_embeddings.weight": "token_embedding.weight",
        "embeddings.position_embeddings.weight": "positions",
        "embeddings.LayerNorm": "norm_embedding",
        "encoder.layer.": "blocks.",
        "attention.self.": "attention.",
        "attention.output.dense": "attention.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    weights = join_projections(renamed(theirs.state_dict(), names), "query", "key", "value")
    weights["positions"] = weights["positions"] + weights.pop("embeddings.token_type_embeddings.weight")[0]
    weights = {name: value for name, value in weights.items() if name != "embeddings.position_ids"}
    model.text.load_state_dict(weights)

    ids = torch.tensor([[11, 5, 8, 12, 0, 0], [11, 12, 0, 0, 0, 0], [11, 3, 3, 4, 9, 12]])
    with torch.no_grad():
        hidden = theirs(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        expected = torch.stack([row[: int((i != 0).sum())].mean(dim=0) for row, i in zip(hidden, ids, strict=True)])
        torch.testing.assert_close(model.encode_text(ids), expected, atol=1e-5, rtol=1e-5)
