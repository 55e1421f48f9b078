"""How well label maps match the truth: intersection over union, pooled over all photos.

Axes: K classes, N photos, or kinds of pixel.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int, Int64, Integer, Num
from numpy import ndarray

from segclip.evaluate.datasets.benchmark import IGNORED

RESAMPLINGS, AT_ONCE = 1000, 100  # of the photos, for an interval; so many in memory together


class Confusion:
    """Pixels by their true class (rows) and the class found (columns), of K classes, summed over photos."""

    def __init__(self, classes: int) -> None:
        self.pixels: Int64[ndarray, "K K"] = np.zeros((classes, classes), np.int64)

    def add(self, truth: Integer[ndarray, "H W"], found: Integer[ndarray, "H W"]) -> None:
        """Count a photo's pixels, those that nobody labelled left out."""
        self.add_counts(count_pairs(truth, found, len(self.pixels)))

    def add_counts(self, counts: Integer[ndarray, "N 3"]) -> None:
        """Add what `count_pairs` gave for a photo."""
        np.add.at(self.pixels, (counts[:, 0], counts[:, 1]), counts[:, 2])

    def iou(self) -> list[float | None]:
        """Intersection over union of each class; None where neither truth nor result has it."""
        both, union = _overlap(self.pixels)
        return [float(b / u) if u else None for b, u in zip(both, union, strict=True)]

    def miou(self) -> float:
        """Mean over the classes that are there; 0 where none is."""
        return float(_mean_iou(*_overlap(self.pixels)))

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose class was found; 0 where there are none."""
        return float(np.trace(self.pixels) / max(self.pixels.sum(), 1))

    def mean_class_accuracy(self) -> float:
        """Share of a class's pixels that were found, mean over the classes that the truth has."""
        truth = self.pixels.sum(axis=1)
        there = truth > 0
        return float((np.diag(self.pixels)[there] / truth[there]).mean()) if there.any() else 0.0


def count_pairs(truth: Integer[ndarray, "H W"], found: Integer[ndarray, "H W"], classes: int) -> Int64[ndarray, "N 3"]:
    """Rows of (true class, class found, pixels), for the pairs that occur where somebody labelled the photo."""
    seen = truth != IGNORED
    pairs = np.bincount(truth[seen].astype(np.int64) * classes + found[seen], minlength=classes**2)
    there = pairs.nonzero()[0]
    return np.stack([there // classes, there % classes, pairs[there]], axis=1)


def name_by_truth(
    truth: Integer[ndarray, "H W"], regions: Int[ndarray, "H W"], classes: int
) -> Integer[ndarray, "H W"]:
    """A label map that gives each region the true class it covers most: the best that any naming could do.

    Args:
        truth: classes, IGNORED where nobody labelled.
        regions: the number of each pixel's region, from 0.
        classes: how many there are.
    """
    seen = truth != IGNORED
    size = (int(regions.max(initial=0)) + 1, classes)
    flat = regions[seen].astype(np.int64) * classes + truth[seen]
    return np.bincount(flat, minlength=size[0] * size[1]).reshape(size).argmax(axis=1)[regions]


def interval(photos: Iterable[Integer[ndarray, "_ 3"]], classes: int) -> tuple[float, float]:
    """The bootstrap's 95% interval of the mIoU: photos drawn with replacement, RESAMPLINGS times.

    Args:
        photos: what `count_pairs` gave for each.
        classes: how many there are.
    """
    sums = [_overlap_of(counts, classes) for counts in photos]
    if not sums:
        return 0.0, 0.0
    both, union = np.array(sums, np.float64).swapaxes(0, 1)  # (N,K) each; exact, and multiplied faster than integers
    generator = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLINGS // AT_ONCE):
        times = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), AT_ONCE)  # each photo is drawn
        values.append(_mean_iou(times @ both, times @ union))
    low, high = np.quantile(np.concatenate(values), (0.025, 0.975))
    return float(low), float(high)


def _overlap_of(counts: Integer[ndarray, "_ 3"], classes: int) -> Int64[ndarray, "2 K"]:
    """Intersection and union of each class in a photo."""
    confusion = Confusion(classes)
    confusion.add_counts(counts)
    return np.stack(_overlap(confusion.pixels))  # a copy: thousands of them are kept


def _overlap(pixels: Int64[ndarray, "K K"]) -> tuple[Int64[ndarray, "K"], Int64[ndarray, "K"]]:
    """Intersection and union of each class."""
    both = np.diag(pixels)
    return both, pixels.sum(axis=0) + pixels.sum(axis=1) - both


def _mean_iou(both: Num[ndarray, "... K"], union: Num[ndarray, "... K"]) -> Float[ndarray, "..."]:
    """Mean over the classes with a union."""
    there = union > 0
    return np.asarray(np.where(there, both / np.maximum(union, 1), 0).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1))
