"""The crops of training."""

import numpy as np
import pytest

from segclip.data.crops import RATIO, Box, crop_photo, draw_crop
from segclip.train.config import TrainConfig


@pytest.mark.parametrize("scale", [TrainConfig.crop_scale, (0.08, 0.5)])
def test_crops_keep_to_scale_and_ratio(scale: tuple[float, float]) -> None:
    generator = np.random.default_rng(0)
    boxes = [draw_crop(300, 400, generator, scale) for _ in range(500)]
    share = np.array([b.height * b.width / (300 * 400) for b in boxes])
    ratio = np.array([b.width / b.height for b in boxes])
    assert share.min() > scale[0] - 0.01 and share.max() <= scale[1] + 0.01 and share.std() > 0.1
    assert ratio.min() > RATIO[0] - 0.01 and ratio.max() < RATIO[1] + 0.01
    assert all(0 <= b.top <= 300 - b.height and 0 <= b.left <= 400 - b.width for b in boxes)


def test_a_strip_is_cut_in_its_middle() -> None:
    assert draw_crop(20, 400, np.random.default_rng(0)) == Box(top=0, left=(400 - 27) // 2, height=20, width=27)


def test_crop_photo_cuts_the_box() -> None:
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[10:30, 20:40] = 255
    assert (crop_photo(photo, Box(10, 20, 20, 20), 8) == 255).all()
    assert not crop_photo(photo, Box(0, 0, 10, 10), 8).any()
