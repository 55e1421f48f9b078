"""Windows: where they lie, what is drawn of them, and batches of them."""

import numpy as np
import pytest
import torch

from segclip.segment.windows import Windows, bilinear, resize_map, resized_bands


@pytest.mark.parametrize("size", [(5, 9), (40, 31), (41, 300), (1, 1)])
def test_bands_are_the_whole_resize(size: tuple[int, int]) -> None:
    scores = torch.rand(3, 17, 23)
    bands = [band for _, band in resized_bands(scores, size, limit=200)]
    assert len(bands) > 1 or size == (1, 1)
    torch.testing.assert_close(torch.cat(bands, dim=1), resize_map(scores, size), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(5, 9), (40, 31), (17, 1), (1, 23)])
def test_two_matrices_are_the_whole_resize(size: tuple[int, int]) -> None:
    scores = torch.rand(3, 17, 23)
    down, across = bilinear(17, size[0]), bilinear(23, size[1])
    torch.testing.assert_close(down @ scores @ across.T, resize_map(scores, size), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (96, 96, [(0, 0)]),
        (96, 97, [(0, 0), (0, 1)]),
        (200, 96, [(0, 0), (96, 0), (104, 0)]),
        (10, 96, [(0, 0)]),
    ],
)
def test_the_last_window_is_shifted_inside(height: int, width: int, expected: list[tuple[int, int]]) -> None:
    windows = Windows.cut(np.zeros((height, width, 3), np.uint8), 96, 96)
    assert windows.boxes == expected
    assert all(crop.shape == (96, 96, 3) for crop in windows.crops())


@pytest.mark.parametrize(("height", "width", "stride"), [(96, 96, 96), (130, 200, 48), (96, 97, 96), (40, 250, 32)])
def test_two_matrices_draw_what_the_windows_do_one_by_one(height: int, width: int, stride: int) -> None:
    windows = Windows.cut(np.zeros((height, width, 3), np.uint8), 96, stride)
    maps = torch.rand(len(windows.boxes), 3, 36)  # a value per patch of 16
    expected = windows.average(torch.stack([resize_map(one.unflatten(-1, (6, 6)), (96, 96)) for one in maps]))
    down, across = windows.drawing(6)
    torch.testing.assert_close(down @ windows.tile(maps) @ across.T, expected, atol=1e-6, rtol=0)
