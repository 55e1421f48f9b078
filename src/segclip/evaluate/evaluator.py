"""Evaluation: a model on photos with masks -> how many pixels of each true class were given each class.

Axes: H W pixels, N kinds of pixel.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, Mask, Pair, stamp_pair
from segclip.evaluate.metrics import Confusion, count_pairs, name_by_truth
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.protocols.paper import region_owner
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import BACKGROUND, check_labels
from segclip.utils.failures import Failed
from segclip.utils.prefetch import prefetched

log = logging.getLogger(__name__)

BATCH = 4  # photos whose windows are encoded together

Words = tuple[tuple[str, ...], ...]  # of each class: what a model is asked for


@dataclass(frozen=True)
class PhotoCounts:
    """What a photo adds to the counts: rows of true class, class found, pixels.

    Attributes:
        key: the photo's.
        stamp: of the photo and its truth, as `stamp_pair` gives it: what these counts are of.
        found: what the protocol's label map gave.
        regions: what the model's regions would give with the best name for each: how good the grouping is. Counted
            in each window of the protocol's first scale, at working size.
    """

    key: str
    stamp: str
    found: Int64[ndarray, "_ 3"]
    regions: Int64[ndarray, "_ 3"]


def words_of(benchmark: Benchmark, names: Literal["own", "sclip"] = "own") -> Words:
    """The words for each class: its own name; or several, as SCLIP has them, for the background too.

    Raises:
        ValueError: SCLIP has none for this set.
    """
    own: dict[int, tuple[str, ...]] = {i: (name,) for i, name in enumerate(benchmark.names)}
    if benchmark.background:
        own[0] = ()
    if names == "sclip":
        if not benchmark.sclip_names:
            raise ValueError(f"no second list of names for {benchmark.name!r}; ask for the set's own names")
        own |= benchmark.sclip_names
    return tuple(own[i] for i in range(len(own)))


def cut_batches(pairs: Sequence[Pair]) -> list[Sequence[Pair]]:
    """Pairs in batches, each of which is encoded together, so that it gives the same figures in any process."""
    return [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]


class Evaluator:
    """Labels the photos of a benchmark and counts pixels.

    Args:
        segmenter: the model and the protocol.
        benchmark: the photos and their masks.
        words: for each class, from `words_of`. Where the background has none, the protocol finds it in its own way.
        presence: as for `Segmenter.segment`.
    """

    def __init__(self, segmenter: Segmenter, benchmark: Benchmark, words: Words, presence: Presence = "auto") -> None:
        self.segmenter, self.benchmark, self.words = segmenter, benchmark, words
        self.presence: Presence = presence
        named = benchmark.background and bool(words[0])  # the background too
        asked = {i: own for i, own in enumerate(words) if own and not (benchmark.background and i == 0)}
        around = words[0] if named else ()
        spelled = [(BACKGROUND, *around)] if around and around != (BACKGROUND,) else []
        # The word "background" is no label, but a set may ask for it as for any other word.
        self.labels = replace(check_labels([*asked.values(), *spelled]), background=around)
        # The class of each label of the result, whose label 0 is the background.
        self._classes = np.array([0, *asked], np.uint8)
        self.threshold = benchmark.background and not (named and not self._thresholds_words())

    def _thresholds_words(self) -> bool:
        return getattr(self.segmenter.protocol, "thresholds_words", False)

    def label(self, encoded: EncodedPhoto, threshold: float | None = None) -> Mask:
        """The class of each pixel; `threshold` in place of the protocol's own, where it has the background by one."""
        background = ("auto" if threshold is None else threshold) if self.threshold else None
        found = self.segmenter.label(encoded, self.labels, background=background, presence=self.presence)
        return self._classes[found.labels]

    def label_among(self, encoded: EncodedPhoto, classes: Sequence[int]) -> Mask:
        """The best of these classes for each pixel, asked for by their own names; the background is none of them."""
        names = [self.benchmark.names[i] for i in classes]
        found = self.segmenter.label(encoded, names, background=None, presence=self.presence)
        return np.array([0, *classes], np.uint8)[found.labels]

    def count(self, key: str, encoded: EncodedPhoto, truth: Mask) -> PhotoCounts:
        """Compare a photo's label map, and its regions, with the truth."""
        found = count_pairs(truth, self.label(encoded), len(self.benchmark.names))
        return PhotoCounts(key, stamp_pair(encoded.photo, truth), found, self.count_regions(encoded, truth))

    @torch.inference_mode()
    def count_regions(self, encoded: EncodedPhoto, truth: Mask) -> Int64[ndarray, "_ 3"]:
        """What the regions of each window of the first scale would give with the best name for each."""
        windows, classes = encoded.windows[0], len(self.benchmark.names)
        owners = region_owner(encoded.outputs[0], windows.window).cpu().numpy()
        found = []
        for part, owner in zip(windows.crops_of(truth), owners, strict=True):
            regions = owner[: part.shape[0], : part.shape[1]]
            found.append(count_pairs(part, name_by_truth(part, regions, classes), classes))
        return np.concatenate(found)

    def encode(
        self, batches: Sequence[Sequence[Pair]], failed: list[Failed] | None = None
    ) -> Iterator[list[tuple[str, EncodedPhoto, Mask]]]:
        """Encode photos, batch by batch, while the next are read.

        Args:
            batches: from `cut_batches`.
            failed: takes each photo or mask that cannot be read; without it, they raise.

        Raises:
            ValueError: a photo or mask that cannot be read.
        """
        for read in prefetched(batches, lambda batch: self._read(batch, failed)):
            keys, photos, truths = zip(*read, strict=True) if read else ((), (), ())
            yield list(zip(keys, self.segmenter.encode(photos), truths, strict=True))

    def _read(self, batch: Sequence[Pair], failed: list[Failed] | None) -> list[tuple[str, AnyPhoto, Mask]]:
        found = []
        for pair in batch:
            try:
                found.append((pair.key, *self.benchmark.load(pair)))
            except Exception as error:  # a bad photo or mask makes libraries raise nearly anything
                if failed is None:
                    raise
                failed.append(Failed(pair.key, str(error) or type(error).__name__))
        return found


def check_truth(counts: Confusion, benchmark: Benchmark) -> None:
    """Say of masks that can hardly be meant what was seen in them.

    Args:
        counts: of all photos.
        benchmark: theirs.

    Raises:
        ValueError: nobody labelled a pixel.
    """
    there = [name for name, pixels in zip(benchmark.names, counts.pixels.sum(axis=1), strict=True) if pixels]
    if not there:
        raise ValueError(
            f"{benchmark.name}: no pixel of the masks has a class; {IGNORED} (or what the set has for it) is 'not "
            "labelled': give each pixel the number of its class"
        )
    if len(there) == 1 < len(benchmark.names):
        log.warning(
            "%s: every labelled pixel of the masks is %r; %d is 'not labelled', and no class: masks of 0 and 255 need "
            "the numbers of their classes in place of 255",
            benchmark.name,
            there[0],
            IGNORED,
        )


def calibrate(
    evaluator: Evaluator, batches: Sequence[Sequence[Pair]], thresholds: Sequence[float], failed: list[Failed] | None
) -> Iterator[tuple[int, list[Confusion]]]:
    """What each background threshold would give: photos done and counts, after each batch. A photo is encoded once."""
    counts = [Confusion(len(evaluator.benchmark.names)) for _ in thresholds]
    done = 0
    for pairs, batch in zip(batches, evaluator.encode(batches, failed), strict=True):
        for _, encoded, truth in batch:
            for threshold, own in zip(thresholds, counts, strict=True):
                own.add(truth, evaluator.label(encoded, threshold))
        done += len(pairs)
        yield done, counts
