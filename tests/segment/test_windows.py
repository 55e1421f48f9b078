"""Windows: where they lie, what is drawn of them, and batches of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.parametrize("size", [(96, 97), (200, 150), (10, 96)])
def test_two_matrices_are_the_average_of_resized_windows(size: tuple[int, int]) -> None:
    windows = Windows.cut(np.zeros((*size, 3), np.uint8), (96, 64), (48, 40))
    patches = torch.rand(len(windows.boxes), 1, 6, 4)
    down, across = windows.averaging(6, 4)
    grid = patches.unflatten(0, (len(windows.tops), len(windows.lefts)))[:, :, 0].transpose(1, 2)
    drawn = windows.average(F.interpolate(patches, (96, 64), mode="bilinear", align_corners=False))
    torch.testing.assert_close(down @ grid.flatten(2).flatten(0, 1) @ across.T, drawn[0], atol=1e-6, rtol=0)


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
    windows = Windows.cut(np.zeros((height, width, 3), np.uint8), (96, 96), (96, 96))
    assert windows.boxes == expected
    assert all(crop.shape == (96, 96, 3) for crop in windows.crops())


@pytest.mark.parametrize(
    ("height", "width", "window", "stride"),
    [(96, 96, (96, 96), (96, 96)), (96, 384, (96, 192), (96, 96)), (160, 208, (96, 64), (48, 32))],
)
def test_blended_windows_give_back_what_all_of_them_see(
    height: int, width: int, window: tuple[int, int], stride: tuple[int, int]
) -> None:
    windows = Windows.cut(np.zeros((height, width, 3), np.uint8), window, stride)
    whole = torch.rand(height // 16, width // 16, 3)
    parts = [whole[y // 16 :, x // 16 :][: window[0] // 16, : window[1] // 16].flatten(0, 1) for y, x in windows.boxes]
    torch.testing.assert_close(windows.blend(torch.stack(parts)), whole, atol=1e-6, rtol=0)


def test_a_window_counts_the_less_the_nearer_its_border_is() -> None:
    windows = Windows.cut(np.zeros((16, 96, 3), np.uint8), (16, 64), (16, 32))
    blended = windows.blend(torch.stack([torch.zeros(4, 1), torch.ones(4, 1)]))[0, :, 0]
    torch.testing.assert_close(blended, torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))
