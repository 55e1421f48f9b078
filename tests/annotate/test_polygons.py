"""Outlines, filled again by pycocotools, give the mask; cleaning leaves no tiny component and touches nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from skimage.measure import label as number_components

from segclip.annotate.polygons import Ring, clean_labels, outlines


def fill(rings: list[Ring], size: tuple[int, int]) -> np.ndarray:
    shapes = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *size)  # type: ignore[arg-type]
    return np.array(coco_mask.decode(coco_mask.merge(shapes))) > 0


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0]), st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_outlines_filled_again_are_the_mask(height: int, width: int, density: float, seed: int) -> None:
    """Specks, holes, holes in each other, components that touch at corners and at the border."""
    mask = np.random.default_rng(seed).random((height, width)) < density
    rings = outlines(mask)
    components = np.asarray(number_components(mask, connectivity=2)).max()
    assert len(rings) == components and (not components or (fill(rings, mask.shape) == mask).all())


def test_outline_of_a_square_with_a_hole() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:5, 2:7] = True
    (square,) = outlines(mask)
    assert sorted(map(tuple, square.tolist())) == [(2, 1), (2, 5), (7, 1), (7, 5)]
    mask[2:4, 3:5] = False
    (ring,) = outlines(mask)
    assert len(ring) == 4 + 4 + 2  # the cut's ends are met twice
    x, y = ring.T
    assert abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2) == mask.sum()


def test_simple_outlines_stay_near() -> None:
    """A disc with a hole: few corners, none of them farther from the exact outline than asked."""
    rows, columns = np.mgrid[:200, :300]
    distance = np.hypot(rows - 100, columns - 150)
    mask = (distance < 80) & (distance > 30)
    (exact,), (simple,) = outlines(mask), outlines(mask, 2.0)
    assert len(simple) < len(exact) / 10
    found = fill([simple], mask.shape)
    assert (found & mask).sum() / (found | mask).sum() > 0.97
    assert {tuple(corner) for corner in simple} <= {tuple(corner) for corner in exact}
    wrong = found != mask
    assert np.minimum(abs(distance - 80), abs(distance - 30))[wrong].max() < 2 + 1.5


def test_a_thing_thinner_than_the_tolerance_stays() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 2:8] = True
    assert (fill(outlines(mask, 5.0), mask.shape) == mask).all()


def test_small_components_and_holes_go_to_the_neighbour() -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[:, 15:] = 1
    clean = labels.copy()
    labels[3, 3] = 2  # an island in the background
    labels[10:12, 20:22] = 0  # a hole
    labels[8:10, 14:17] = 3  # on the border: two thirds of it in label 1
    assert (clean_labels(labels, 7)[[3, 10, 8], [3, 20, 16]] == [0, 1, 1]).all()
    clean[8:10, 14] = 1
    assert (clean_labels(labels, 7) == clean).all()
    assert (clean_labels(labels, 1) == labels).all()
    assert (clean_labels(np.full((4, 5), 2, np.int32), 100) == 2).all(), "one component alone stays"


@given(st.integers(0, 999), st.integers(2, 40), st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_no_tiny_component_is_left(seed: int, least: int, count: int) -> None:
    labels = np.random.default_rng(seed).integers(0, count, (23, 31)).astype(np.int32)
    labels[4:16, 5:20] = 1
    clean = clean_labels(labels, least)
    assert np.bincount(np.asarray(number_components(clean, background=-1, connectivity=1)).ravel())[1:].min() >= least
    assert (clean[4:16, 5:20] == 1).all() and set(np.unique(clean)) <= set(np.unique(labels))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_thin_photos(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, bool)
    assert (fill(outlines(mask, 1.0), shape) == mask).all()
    assert (clean_labels(mask.astype(np.int32), 5) == 1).all()
