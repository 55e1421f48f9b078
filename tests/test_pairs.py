"""Pairs of photos and captions, and the crops of training."""

import json
from pathlib import Path

import numpy as np
import pytest

from segclip.data.pairs import RATIO, SCALE, Box, crop_photo, draw_crop, read_pairs


def test_read_pairs(tmp_path: Path) -> None:
    lines = [{"image": "a/1.jpg", "captions": ["a cat", "a pet"]}, {"image": "2.jpg", "captions": ["ein Hund"]}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = read_pairs(tmp_path)
    assert first.photo == tmp_path / "a/1.jpg" and first.captions == ("a cat", "a pet")
    assert second.captions == ("ein Hund",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no lines"),
        ("not json", "line 1: expected"),
        ('{"image": "1.jpg"}', "captions"),
        ('{"image": "1.jpg", "captions": []}', "one or more texts"),
        ('{"image": "1.jpg", "captions": [" "]}', "one or more texts"),
        ('{"image": "1.jpg", "captions": ["a cat"]}\n[]', "line 2"),
    ],
)
def test_a_bad_file_names_the_line(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(ValueError, match=why):
        read_pairs(tmp_path)


def test_a_folder_without_pairs_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.jsonl: no such file"):
        read_pairs(tmp_path)


def test_crops_keep_to_scale_and_ratio() -> None:
    generator = np.random.default_rng(0)
    boxes = [draw_crop(300, 400, generator) for _ in range(500)]
    share = np.array([b.height * b.width / (300 * 400) for b in boxes])
    ratio = np.array([b.width / b.height for b in boxes])
    assert share.min() > SCALE[0] - 0.01 and share.max() <= SCALE[1] and share.std() > 0.1
    assert ratio.min() > RATIO[0] - 0.01 and ratio.max() < RATIO[1] + 0.01
    assert all(0 <= b.top <= 300 - b.height and 0 <= b.left <= 400 - b.width for b in boxes)


def test_a_strip_is_cut_in_its_middle() -> None:
    assert draw_crop(20, 400, np.random.default_rng(0)) == Box(top=0, left=(400 - 27) // 2, height=20, width=27)


def test_crop_photo_cuts_the_box() -> None:
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[10:30, 20:40] = 255
    assert (crop_photo(photo, Box(10, 20, 20, 20), 8) == 255).all()
    assert not crop_photo(photo, Box(0, 0, 10, 10), 8).any()
