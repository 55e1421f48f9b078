"""mIoU and its kin: by hand, against torchmetrics, and on data whose spread is known."""

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from segclip.evaluate.metrics import Confusion, count_pairs, interval, name_by_truth

# 0 background, 1, 2; the lower right corner is unlabelled.
TRUTH = np.array([[0, 0, 1, 1], [0, 2, 1, 255]])
FOUND = np.array([[0, 1, 1, 1], [0, 0, 2, 2]])


def test_by_hand() -> None:
    """Class 0: 2 of 4; class 1: 2 of 4; class 2: 0 of 2. Five pixels short of one are right: 4 of 7."""
    confusion = Confusion(4)
    confusion.add(TRUTH, FOUND)
    assert confusion.iou() == [0.5, 0.5, 0.0, None]
    assert confusion.miou() == pytest.approx(1 / 3)
    assert confusion.pixel_accuracy() == pytest.approx(4 / 7)
    assert confusion.mean_class_accuracy() == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert Confusion(3).miou() == Confusion(3).pixel_accuracy() == Confusion(3).mean_class_accuracy() == 0


def test_it_is_pooled_as_torchmetrics_pools() -> None:
    generator = np.random.default_rng(0)
    truths = generator.integers(0, 7, (5, 30, 40))
    found = np.where(generator.random(truths.shape) < 0.6, truths, generator.integers(0, 7, truths.shape))
    truths[generator.random(truths.shape) < 0.1] = 255
    confusion = Confusion(7)
    metric = JaccardIndex("multiclass", num_classes=7, ignore_index=255)
    for truth, own in zip(truths, found, strict=True):
        confusion.add(truth, own)
        metric.update(torch.from_numpy(own), torch.from_numpy(truth))
    assert confusion.miou() == pytest.approx(float(metric.compute()), abs=1e-6)


def test_regions_get_the_class_they_cover_most() -> None:
    regions = np.array([[0, 0, 1, 1], [0, 2, 1, 2]])
    assert name_by_truth(TRUTH, regions, 3).tolist() == [[0, 0, 1, 1], [0, 2, 1, 2]]
    assert name_by_truth(TRUTH, np.zeros((2, 4), int), 3).tolist() == [[0] * 4] * 2  # three pixels of 0 and of 1


def test_the_interval_covers_what_photos_like_these_give() -> None:
    """Photos of one class each, right with chance 0.7: the accuracy of 400 has a deviation of 0.0229."""
    generator = np.random.default_rng(1)
    photos = []
    for right in generator.random(400) < 0.7:
        photos.append(np.array([[0, 0 if right else 1, 10]]))
    low, high = interval(iter(photos), classes=2)
    share = np.mean([photo[0, 1] == 0 for photo in photos])
    # Class 1 is only ever found wrongly, so that the mIoU is half of the share.
    assert low == pytest.approx((share - 1.96 * 0.0229) / 2, abs=0.003)
    assert high == pytest.approx((share + 1.96 * 0.0229) / 2, abs=0.003)
    assert interval(iter(photos), classes=2) == (low, high)


def test_the_interval_is_that_of_photos_drawn_with_replacement() -> None:
    """Against the bootstrap as the textbook has it, over photos of very unequal size and few classes each."""
    generator = np.random.default_rng(2)
    photos = [
        np.array([[a, b, generator.integers(1, 1000)] for a, b in generator.integers(0, 5, (4, 2))]) for _ in range(40)
    ]
    draws = []
    for _ in range(4000):
        confusion = Confusion(5)
        for i in generator.integers(0, len(photos), len(photos)):
            confusion.add_counts(photos[i])
        draws.append(confusion.miou())
    low, high = np.quantile(draws, (0.025, 0.975))
    assert interval(photos, classes=5) == pytest.approx((low, high), abs=0.006)


def test_the_interval_of_no_photo() -> None:
    assert interval([], classes=2) == (0, 0)


def test_counts_are_rows_of_what_occurs() -> None:
    assert count_pairs(TRUTH, FOUND, 3).tolist() == [[0, 0, 2], [0, 1, 1], [1, 1, 2], [1, 2, 1], [2, 0, 1]]
