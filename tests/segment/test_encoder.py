"""Faster ways to encode: they give the plain way's label maps, up to what their numbers cannot hold."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from helpers.pixels import normalise
from helpers.small_model import CLIP, SENTENCE, small_model
from helpers.small_runs import run_script
from torch import Tensor, nn

from segclip.checkpoints.loading import load
from segclip.config import ModelConfig
from segclip.model.grouping import CenterGrouping, Grouping
from segclip.model.layers import MLP, Attention, Block, Projection, limit_precision
from segclip.model.segclip import SegCLIP
from segclip.segment.encoder import DTYPES, DType, Encoder, InferenceLinear
from segclip.segment.segmenter import Segmenter

WINDOWS = torch.from_numpy(np.stack([skimage.data.chelsea()[y : y + 112, y : y + 112] for y in (0, 50, 100)]))


class Doubled(nn.Linear):
    """A linear layer that is more than its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Gated(MLP):
    """An MLP whose activation is not the only one to read what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * self.activation(hidden))


class Unhashable:
    """A Swish that can be no key of a table."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


class Channels(nn.Module):
    """A convolution over tokens (B,N,D) that keeps their number."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.mT).mT


class OtherGrouping(CenterGrouping):
    """Layers that inference knows nothing of, their results mixed with what is in float32."""

    def __init__(self, width: int, centers: int) -> None:
        super().__init__(replace(CLIP, centers=centers), 1)
        self.value, self.attention = nn.Linear(width, width, bias=False), Attention(width, 1)
        self.gate = Gated(width, F.gelu)
        self.more = nn.Sequential(Channels(width, width), nn.ReLU(), nn.Dropout(0.5), Doubled(width, width))
        self.memory = nn.LSTM(width, width, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(width, 1, 2 * width, batch_first=True)
        self.mix = nn.Parameter(torch.randn(width, width) / width**0.5)
        for parameter in [self.centers, self.key.weight]:
            nn.init.normal_(parameter, std=0.1)

    def forward(self, patches: Tensor, gumbel: Tensor | None = None) -> Grouping:
        centers = self.blocks[0](self.centers.expand(len(patches), -1, -1), patches)
        centers = self.attention(x=centers) @ self.mix + self.gate(self.value(centers) @ self.mix)
        soft = (centers @ self.norm_key(self.key(patches)).mT).softmax(dim=1)
        regions = self.memory(self.more(self.layer(soft @ self.value(patches))))[0]
        return Grouping(self.mlp_out(regions), soft, soft)


def trunk(model: SegCLIP) -> list[Block]:
    return [block for block in model.image.tower.trunk if isinstance(block, Block)]


def agree(model: SegCLIP, dtype: DType) -> None:
    """An encoder gives what the model gives, as far as its numbers can."""
    with torch.inference_mode():
        expected = model.encode_image(normalise(WINDOWS))
    found = vars(Encoder(model, dtype)(WINDOWS))
    for name in ("embedding", "regions", "soft"):
        value = getattr(expected, name)
        assert found[name].dtype == torch.float32
        if dtype == "float32":
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
        else:
            assert (found[name] - value).norm() < 0.05 * value.norm(), name


@pytest.fixture(scope="module")
def mini() -> SegCLIP:
    return load("mini", "cpu")


@pytest.mark.parametrize("config", [CLIP, SENTENCE])
def test_float32_gives_what_the_model_gives(config: ModelConfig) -> None:
    """Not to the last bit: another library multiplies."""
    model = small_model(config)
    with torch.inference_mode():
        expected = model.encode_image(normalise(WINDOWS))
    found = Encoder(model)(WINDOWS)
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_lighter_numbers_change_few_pixels(mini: SegCLIP, dtype: DType) -> None:
    """Of two photos, under the protocol `open`: less than one pixel of a hundred."""
    before = {name: value.clone() for name, value in mini.state_dict().items()}
    labels = ["cat", "dog", "cup", "spoon", "table", "car", "tree"]
    photos = [skimage.data.chelsea(), skimage.data.coffee()[::2, ::2]]
    plain, light = Segmenter(mini).segment_batch(photos, labels), Segmenter(mini, dtype=dtype)
    found = light.segment_batch(photos, labels)
    changed = [float((a.labels != b.labels).mean()) for a, b in zip(plain, found, strict=True)]
    assert 0 < sum(changed) / len(changed) < 0.01, changed
    assert all(torch.equal(mini.state_dict()[name], value) for name, value in before.items())
    assert found[0].scores.dtype == np.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_onednn_it_gives_the_same(dtype: DType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where torch's own products serve."""
    model, pixels = small_model(), normalise(WINDOWS)
    with torch.inference_mode():
        expected = Encoder(model, dtype)._encode_patches(pixels)
        monkeypatch.setattr("segclip.segment.encoder._onednn_takes", lambda dtype, device: False)
        found = Encoder(model, dtype)._encode_patches(pixels)
    assert (found - expected).norm() < (1e-5 if dtype == "float32" else 0.01) * expected.norm()


class Without:
    """A namespace of torch's operators, less some."""

    def __init__(self, namespace: object, *names: str) -> None:
        self._namespace, self._names = namespace, names

    def __getattr__(self, name: str) -> object:
        if name in self._names:
            raise AttributeError(name)
        return getattr(self._namespace, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("missing", ["_linear_pointwise", "_is_mkldnn_bf16_supported", "gelu_"])
def test_without_an_operator_of_torch_it_gives_the_same(
    dtype: DType, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no public part of torch."""
    model, pixels = small_model(SENTENCE), normalise(WINDOWS)
    with torch.inference_mode():
        expected = Encoder(model, dtype)._encode_patches(pixels)
        for namespace in ("mkldnn", "aten"):
            monkeypatch.setattr(torch.ops, namespace, Without(getattr(torch.ops, namespace), missing))
        found = Encoder(model, dtype)._encode_patches(pixels)
    assert (found - expected).norm() < (1e-5 if dtype == "float32" else 0.01) * expected.norm()


def test_it_can_be_imported_without_them() -> None:
    run_script("without_operators_script.py")


@pytest.mark.parametrize("dtype", DTYPES)
def test_unknown_layers_stay_as_they_are(dtype: DType) -> None:
    model = small_model()
    model.image.grouping = OtherGrouping(64, 4).eval()
    agree(model, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unknown_layers_within_a_block(dtype: DType) -> None:
    model = small_model()
    first, second = trunk(model)
    first.attention.in_proj = Projection(64, 192, bias=False)
    first.mlp.fc1, first.mlp.fc2 = nn.Linear(64, 256, bias=False), Doubled(256, 64)
    first.register_module("scale1", nn.Sequential(Channels(64, 64), nn.Dropout(0.5)))
    second.attention.out_proj = Doubled(64, 64)
    second.register_module("mlp", nn.Sequential(nn.Linear(64, 256, bias=False), nn.PReLU(), nn.Linear(256, 64)))
    agree(model.eval(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [F.relu, F.hardswish, nn.GELU("tanh"), nn.PReLU(), Unhashable()])
def test_an_unknown_activation_stays_as_it_is(activation: Callable[[Tensor], Tensor], dtype: DType) -> None:
    model = small_model()
    for block in trunk(model):
        block.mlp = MLP(64, activation)
    agree(model, dtype)


@pytest.mark.parametrize("first", [nn.Identity(), Doubled(64, 64)])
def test_an_activation_overwrites_nothing_but_the_result_of_a_layer_of_ours(first: nn.Module) -> None:
    """Identity gives what it was given, which is added to later."""
    model = small_model()
    mlp = trunk(model)[0].mlp
    mlp.register_module("fc1", first)
    mlp.fc2 = nn.Linear(64, 64)
    trunk(model)[0].register_module("norm2", nn.Identity())
    agree(model, "float32")


def test_modules_say_themselves_how_light_their_numbers_may_be() -> None:
    model = small_model()
    limit_precision(trunk(model)[0].attention, "float32")
    limit_precision(model.image.region_blocks, "int8")

    def weights(part: nn.Module) -> set[torch.dtype]:
        return {layer.weight.dtype for layer in part.modules() if isinstance(layer, InferenceLinear)}

    image = Encoder(model, "int8")._image
    first, second = (block for block in image.tower.trunk if isinstance(block, Block))
    assert weights(first.attention) == weights(image.grouping.mlp_out) == {torch.float32}
    assert weights(first.mlp) == weights(second) == weights(image.region_blocks) == {torch.int8}
    assert weights(image.grouping.blocks) == {torch.bfloat16}
    assert weights(Encoder(model, "bfloat16")._image.tower.trunk) == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_is_a_snapshot(dtype: DType) -> None:
    model = small_model()
    encoder = Encoder(model, dtype)
    expected = encoder(WINDOWS, each=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.train()
    for name, value in vars(encoder(WINDOWS, each=True)).items():
        assert torch.equal(value, getattr(expected, name)), name


def test_an_encoder_leaves_dropout_out_of_a_model_in_training_and_the_model_as_it_is() -> None:
    model = small_model()
    model.image.register_module("norm_post", nn.Sequential(model.image.norm_post, nn.Dropout(0.9)))
    expected = Encoder(model.eval())(WINDOWS).embedding
    assert torch.equal(Encoder(model.train())(WINDOWS).embedding, expected)
    assert all(module.training for module in model.modules())


def test_a_segmenter_keeps_no_second_copy_of_the_weights(mini: SegCLIP) -> None:
    segmenter = Segmenter(mini)
    own = {p.data_ptr() for p in segmenter.model.parameters()}
    tower = segmenter.encoder._image
    assert all(weight.data_ptr() in own for weight in [*tower.parameters(), *tower.buffers()])


def test_eight_bits_keep_whole_numbers_and_their_scale() -> None:
    """As of weights that come from a file of 8 bits: nothing is rounded anew."""
    linear, scale = nn.Linear(64, 32), torch.rand(32, 1) + 0.1
    whole = torch.randint(-127, 128, (32, 64)).float()
    whole[:, 0] = 127
    with torch.no_grad():
        linear.weight.copy_(whole * scale)
    light, x = InferenceLinear(linear, "int8"), torch.randn(5, 64).bfloat16()
    assert torch.equal(light.weight.float(), whole)
    with torch.inference_mode():
        torch.testing.assert_close(light(x).float(), linear(x.float()), rtol=2**-7, atol=0.1)


def test_eight_bits_take_a_quarter_of_the_memory(mini: SegCLIP) -> None:
    linear = sum(
        p.numel() for name, p in mini.image.tower.trunk.named_parameters() if ".attention." in name or ".mlp." in name
    )
    buffers = list(Encoder(mini, "int8")._image.tower.trunk.buffers())
    assert linear <= sum(b.numel() * b.element_size() for b in buffers) < 1.02 * linear


def test_weights_that_are_zero_stay_so() -> None:
    model = small_model()
    with torch.no_grad():
        for name, parameter in model.image.tower.trunk.named_parameters():
            if name.endswith("fc1.weight"):
                parameter[3] = 0
    output = Encoder(model, "int8")(WINDOWS)
    assert output.embedding.isfinite().all() and output.soft.isfinite().all()


def test_what_an_encoder_cannot_do() -> None:
    command = [sys.executable, "-c", "import segclip; segclip.Segmenter('mini', dtype='float16')"]
    error = subprocess.run(command, capture_output=True, text=True).stderr  # without the tests' type checks
    assert "unknown dtype 'float16'; choose one of float32, bfloat16, int8" in error
    with pytest.raises(ValueError, match="image side 100 is not a multiple of the patch 16"):
        Encoder(small_model())(WINDOWS[:, :100])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_gives_the_same(tmp_path: Path) -> None:
    """In a process of its own, as torch cannot compile through the type checks of the tests."""
    run_script("compile_script.py")
