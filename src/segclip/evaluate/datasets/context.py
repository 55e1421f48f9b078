"""PASCAL Context: 59 classes, with the background or without; photos of VOC 2010."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from segclip.evaluate.datasets.benchmark import (
    IGNORED,
    Benchmark,
    Mask,
    MaskError,
    Pair,
    find,
    png_reader,
    read_keys,
    translate,
)

# fmt: off
# Class names as the paper uses them (arXiv 2211.14813); each index is the class id in mmsegmentation's masks.
CONTEXT60 = (
    "background", "airplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain",
    "dog", "door", "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike",
    "mountain", "mouse", "person", "plate", "platform", "plant", "road", "rock", "sheep", "shelves", "sidewalk",
    "sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "monitor", "wall", "water", "window",
    "wood",
)
# The same sixty as PASCAL Context's own PNGs number them: PASCAL's twenty come first.
CONTEXT_PNG60 = (
    "background", "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table",
    "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor", "bag", "bed", "bench",
    "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence", "floor", "flower", "food",
    "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate", "road",
    "rock", "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck", "wall", "water", "window",
    "wood",
)
# fmt: on
# What PASCAL Context's labels.txt calls them, where CONTEXT60 says something else.
CONTEXT_LABELS = {"airplane": "aeroplane", "plant": "pottedplant", "monitor": "tvmonitor"}


# See voc2012.py. Here SCLIP and those after it ask for the word alone, beside one name a class.
SCLIP_NAMES = {0: ("background",)}


def open_context60(root: Path, split: str) -> Benchmark:
    """With the background: whatever is none of the 59."""
    return replace(_open(root, split, "context60", CONTEXT60, {i: i for i in range(60)}), sclip_names=SCLIP_NAMES)


def open_context59(root: Path, split: str) -> Benchmark:
    """The 59 alone; what is none of them is ignored."""
    return _open(root, split, "context59", CONTEXT60[1:], {0: IGNORED, **{i: i - 1 for i in range(1, 60)}})


def _open(root: Path, split: str, name: str, names: tuple[str, ...], classes: Mapping[int, int]) -> Benchmark:
    """Masks of mmsegmentation's conversion (SegmentationClassContext), official PNGs, or official .mat files.

    Args:
        root, split, name, names: of the set.
        classes: its class, or IGNORED, for each of CONTEXT60.
    """
    bases, lists = ("", "VOC2010/", "VOCdevkit/VOC2010/"), ("SegmentationContext", "Main")
    index = find(root, *(f"{base}ImageSets/{kind}/{split}.txt" for base in bases for kind in lists))
    base = index.parents[2]
    folders = ("SegmentationClassContext", "59_context_labels", "trainval")
    candidates = [parent / folder for folder in folders for parent in dict.fromkeys((base, base.parent, root))]
    masks = next((folder for folder in candidates if folder.is_dir()), None)
    if masks is None:
        raise ValueError(
            f"{base}: no masks; expected SegmentationClassContext/*.png, 59_context_labels/*.png or trainval/*.mat"
        )
    suffix, read = "png", png_reader({**classes, IGNORED: IGNORED})
    if masks.name == "59_context_labels":
        meaning = {i: classes[CONTEXT60.index(one)] for i, one in enumerate(CONTEXT_PNG60)}
        read = png_reader({**meaning, IGNORED: IGNORED})
    elif masks.name == "trainval":
        labels = _read_labels(find(masks, "labels.txt", "../labels.txt"))
        suffix, read = "mat", partial(_read_mat, meaning={value: classes[i] for value, i in labels.items()})
    pairs = [Pair(key, base / "JPEGImages" / f"{key}.jpg", masks / f"{key}.{suffix}") for key in read_keys(index)]
    return Benchmark(name, split, names, pairs, read)


def _read_labels(file: Path) -> dict[int, int]:
    """labels.txt, with a line like "2: aeroplane" for each of 459 labels -> the class of CONTEXT60 of each."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text("utf-8").splitlines() if line.strip())
        numbers = {name.strip(): int(number) for number, name in lines.items()}
        known = {numbers[CONTEXT_LABELS.get(name, name)]: i for i, name in enumerate(CONTEXT60) if i}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file}: expected the download's own lines like `2: aeroplane` ({error})") from error
    return {number: known.get(number, 0) for number in (0, *numbers.values())}


def _read_mat(pair: Pair, meaning: Mapping[int, int]) -> Mask:
    from scipy.io import loadmat  # here: few need it

    try:
        values = loadmat(pair.mask, variable_names=["LabelMap"])["LabelMap"]
    except FileNotFoundError:
        raise MaskError(f"{pair.mask}: no such mask; copy it there, or leave its photo out") from None
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        raise MaskError(f"{pair.mask}: no LabelMap can be read ({error!r}); unpack trainval.tar.gz again") from error
    return translate(np.asarray(values), meaning, str(pair.mask))
