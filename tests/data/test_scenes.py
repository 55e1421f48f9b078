"""Generated scenes: what the captions name and the masks say is what is painted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segclip.data.scenes import CLASSES, GROUNDS, SIDE, TEMPLATES, THINGS, Scene, make_scene, write_scenes
from segclip.data.sources.open import open_source

COUNT = 60


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(0, number) for number in range(COUNT)]


def test_a_scene_follows_from_its_seed_and_number_alone(scenes: list[Scene]) -> None:
    again = make_scene(0, 7)
    np.testing.assert_array_equal(again.photo, scenes[7].photo)
    np.testing.assert_array_equal(again.mask, scenes[7].mask)
    assert again.captions == scenes[7].captions
    for other in (make_scene(0, 8), make_scene(1, 7)):
        assert (other.photo != again.photo).any()


def test_photo_and_mask_have_the_side_that_prepare_takes(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.photo.shape == (SIDE, SIDE, 3) and scene.photo.dtype == np.uint8
        assert scene.mask.shape == (SIDE, SIDE) and scene.mask.dtype == np.uint8
    assert SIDE >= 64


def test_each_caption_names_exactly_what_the_mask_holds(scenes: list[Scene]) -> None:
    for scene in scenes:
        held = {CLASSES[index] for index in np.unique(scene.mask)}
        assert len(held & set(GROUNDS)) == 1 and 1 <= len(held & set(THINGS)) <= 3
        assert len(scene.captions) == len(TEMPLATES)
        for caption in scene.captions:
            assert {name for name in CLASSES if name in caption} == held


def test_each_class_has_its_colour_where_the_mask_says_it_is(scenes: list[Scene]) -> None:
    """Each pixel's colour, smoothed, is nearest to that of its own class; things cover what can be seen of them."""
    colours = np.array([{**GROUNDS, **THINGS}[name][0] for name in CLASSES])
    for scene in scenes:
        for index in np.unique(scene.mask):
            where = scene.mask == index
            mean = scene.photo[where].mean(axis=0)
            assert np.abs(colours - mean).sum(axis=1).argmin() == index
            distance = np.abs(scene.photo[where].astype(float) - mean).mean()
            assert distance < 30  # nothing else lies under the mask: other colours are farther than any texture
            assert where.sum() >= 150  # large enough for a few patches


def test_every_class_comes_up(scenes: list[Scene]) -> None:
    share = np.bincount(np.concatenate([scene.mask.ravel() for scene in scenes]), minlength=len(CLASSES))
    assert len(share) == len(CLASSES) and (share > 0.01 * COUNT * SIDE**2).all()


def test_written_scenes_are_pairs_and_an_evaluation_set(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 5, seed=3)
    pairs = list(open_source(folder).pairs())
    assert len(pairs) == 5
    for number, pair in enumerate(pairs):
        scene = make_scene(3, number)
        assert pair.captions == scene.captions and isinstance(pair.photo, Path)
        np.testing.assert_array_equal(np.asarray(Image.open(pair.photo)), scene.photo)
        mask = Image.open(folder / "masks" / f"{pair.photo.stem}.png")
        assert mask.mode == "L"
        np.testing.assert_array_equal(np.asarray(mask), scene.mask)
    classes = json.loads((folder / "classes.json").read_text("utf-8"))["classes"]
    assert classes == {str(index): name for index, name in enumerate(CLASSES)}
