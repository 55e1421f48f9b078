"""Faster ways to encode: they give the plain way's label maps, up to what their numbers cannot hold."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from helpers.small_model import CLIP, SENTENCE, small_model
from helpers.small_runs import run_script

from segclip.checkpoints.loading import load
from segclip.config import ModelConfig
from segclip.data.normalise import normalise
from segclip.model.segclip import SegCLIP
from segclip.segment.encoder import DTYPES, DType, Encoder, InferenceLinear
from segclip.segment.segmenter import Segmenter

WINDOWS = torch.from_numpy(np.stack([skimage.data.chelsea()[y : y + 112, y : y + 112] for y in (0, 50, 100)]))


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


def test_float32_weights_are_the_models_own(mini: SegCLIP) -> None:
    own = {p.data_ptr() for p in mini.parameters()}
    tower = Encoder(mini)._tower
    assert all(weight.data_ptr() in own for weight in [*tower.parameters(), *tower.buffers()])


def test_eight_bits_keep_whole_numbers_and_their_scale() -> None:
    """As of weights that come from a file of 8 bits: nothing is rounded anew."""
    linear, scale = torch.nn.Linear(64, 32), torch.rand(32, 1) + 0.1
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
        p.numel() for name, p in mini.image.trunk.named_parameters() if ".attention." in name or ".mlp." in name
    )
    buffers = list(Encoder(mini, "int8")._tower.trunk.buffers())
    assert linear <= sum(b.numel() * b.element_size() for b in buffers) < 1.02 * linear


def test_weights_that_are_zero_stay_so() -> None:
    model = small_model()
    with torch.no_grad():
        for name, parameter in model.image.trunk.named_parameters():
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
