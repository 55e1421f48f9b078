"""Cityscapes: the 19 classes it evaluates, no background."""

from pathlib import Path

from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, Pair, find, png_reader

# The official names.
# fmt: off
CITYSCAPES19 = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)
# Their values in the files *_labelIds.png, in the same order.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# fmt: on


def open_cityscapes(root: Path, split: str) -> Benchmark:
    """The folder that holds leftImg8bit/ and gtFine/; what is none of the 19 classes is ignored."""
    masks, photos = find(root, f"gtFine/{split}"), find(root, f"leftImg8bit/{split}")
    pairs = []
    for photo in sorted(photos.glob("*/*_leftImg8bit.png")):
        key = photo.name.removesuffix("_leftImg8bit.png")
        pairs.append(Pair(key, photo, masks / photo.parent.name / f"{key}_gtFine_labelIds.png"))
    if not pairs:
        raise ValueError(f"{photos}: no CITY/*_leftImg8bit.png; unpack leftImg8bit_trainvaltest.zip there")
    meaning = dict.fromkeys((*range(34), IGNORED), IGNORED) | {value: i for i, value in enumerate(LABEL_IDS)}
    return Benchmark("cityscapes", split, CITYSCAPES19, pairs, png_reader(meaning))
