"""The embedded model does its job: it names what is in a photo, offline."""

from importlib.resources import files

import numpy as np
import pytest
import skimage.data
from safetensors import safe_open

from segclip import SegCLIP, Segmenter, load


@pytest.fixture(scope="module")
def mini() -> SegCLIP:
    return load("mini")


def test_chelsea_is_a_cat(mini: SegCLIP) -> None:
    found = Segmenter(mini).segment(skimage.data.chelsea(), ["cat", "dog", "car", "boat"])
    shares = {f.label: f.share for f in found.found()}
    assert shares["cat"] > 0.4
    assert (
        not shares.keys() & {"dog", "car", "boat"}
        or max(shares[n] for n in shares if n not in ("cat", "background")) < 0.05
    )


@pytest.mark.slow
def test_the_cats_face_is_cat_and_its_name_alone_is_enough(mini: SegCLIP) -> None:
    labels = Segmenter(mini).segment(skimage.data.chelsea(), ["cat"]).labels
    assert (labels[80:220, 130:300] == 1).mean() > 0.8


@pytest.mark.slow
def test_what_is_not_there_is_background(mini: SegCLIP) -> None:
    labels = Segmenter(mini).segment(skimage.data.chelsea(), ["airplane", "pizza"]).labels
    assert (labels == 0).mean() > 0.9


@pytest.mark.slow
def test_several_centers_gather_patches(mini: SegCLIP) -> None:
    segmenter = Segmenter(mini)
    used = [
        len(np.unique(segmenter.segment(photo, ["sky", "woman", "cup", "cat"], background=None).scores))
        for photo in (skimage.data.astronaut(), skimage.data.rocket())
    ]
    assert min(used) > 1


def test_the_file_is_small_and_in_eight_bits() -> None:
    asset = files("segclip") / "assets" / "mini.safetensors"
    assert len(asset.read_bytes()) <= 60_000_000
    with safe_open(str(asset), "np") as file:
        assert file.get_slice("image.tower.trunk.0.mlp.fc1.weight").get_dtype() == "I8"
