"""Superpixels: found, cut and reduced as the paper's training does it."""

import numpy as np
import pytest
import skimage.data
from skimage import segmentation

from segclip.data.superpixels import crop_superpixels, felzenszwalb, patch_superpixels, without_gaps


def _majority_by_loop(superpixels: np.ndarray, patch: int) -> np.ndarray:
    rows, columns = superpixels.shape[0] // patch, superpixels.shape[1] // patch
    ids = np.zeros((rows, columns), int)
    for row in range(rows):
        for column in range(columns):
            block = superpixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            ids[row, column] = np.bincount(block.ravel()).argmax()  # argmax: the first, so the smallest, of several
    return ids


@pytest.fixture(scope="module")
def found() -> np.ndarray:
    return felzenszwalb(skimage.data.chelsea())


def test_felzenszwalb_has_the_papers_settings(found: np.ndarray) -> None:
    photo = skimage.data.chelsea()
    assert found.shape == photo.shape[:2] and found.dtype == np.int32
    np.testing.assert_array_equal(found, segmentation.felzenszwalb(photo, scale=224, sigma=0.9, min_size=224))
    assert len(np.unique(found)) > 10
    assert np.bincount(found.ravel()).min() >= 224


def test_ids_without_gaps_keep_their_order() -> None:
    ids = np.random.default_rng(0).choice([3, 4, 9, 700], (20, 30)).astype(np.int32)
    np.testing.assert_array_equal(without_gaps(ids), np.unique(ids, return_inverse=True)[1].reshape(ids.shape))


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2)])
def test_felzenszwalb_of_thin_photos(size: tuple[int, int]) -> None:
    assert felzenszwalb(np.zeros((*size, 3), np.uint8)).tolist() == np.zeros(size, int).tolist()


@pytest.mark.parametrize("patch", [14, 16, 56])
def test_majority_equals_a_loop_over_patches(patch: int, found: np.ndarray) -> None:
    cut = crop_superpixels(found, (20, 60, 250, 190), 224)
    ids = patch_superpixels(cut, patch)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, _majority_by_loop(cut, patch))


def test_majority_of_ties_and_oblong_maps() -> None:
    superpixels = np.random.default_rng(0).integers(0, 3, (40, 24))  # patches of 16 pixels: ties abound
    np.testing.assert_array_equal(patch_superpixels(superpixels, 4), _majority_by_loop(superpixels, 4))
    assert patch_superpixels(np.array([[7, 7], [3, 3]]), 2).tolist() == [[3]]


def test_reference_takes_the_floor_of_the_mean() -> None:
    superpixels = np.array([[9, 9, 1, 0], [9, 0, 0, 0]])
    assert patch_superpixels(superpixels, 2, "reference").tolist() == [[6, 0]]
    assert patch_superpixels(superpixels, 2, "majority").tolist() == [[9, 0]]


def test_reference_differs_from_the_majority_on_a_photo(found: np.ndarray) -> None:
    cut = crop_superpixels(found, (0, 0, *found.shape), 224)
    differ = (patch_superpixels(cut, 16) != patch_superpixels(cut, 16, "reference")).mean()
    assert 0.2 < differ < 0.8


def test_patch_must_divide_the_map() -> None:
    with pytest.raises(ValueError, match="30x32 are not a multiple of the patch 16"):
        patch_superpixels(np.zeros((30, 32), np.int32), 16)


def test_crop_is_nearest_and_relative_to_the_crop() -> None:
    superpixels = np.arange(70).reshape(7, 10)
    cut = crop_superpixels(superpixels, (2, 3, 5, 4), 8)
    for i in range(8):
        for j in range(8):
            assert cut[i, j] == superpixels[2 + i * 5 // 8, 3 + j * 4 // 8]
    np.testing.assert_array_equal(crop_superpixels(superpixels, (1, 2, 4, 4), 4), superpixels[1:5, 2:6])


@pytest.mark.parametrize("box", [(-1, 0, 3, 3), (0, 8, 3, 3), (5, 0, 3, 3), (0, 0, 0, 3)])
def test_crop_must_be_inside(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not inside the photo"):
        crop_superpixels(np.zeros((7, 10), np.int32), box, 4)
