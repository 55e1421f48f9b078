"""PASCAL VOC 2012: 20 things and the background."""

from pathlib import Path

from segclip.evaluate.datasets.benchmark import Benchmark, Pair, class_values, find, png_reader, read_keys

# fmt: off
# Class names as the paper uses them (arXiv 2211.14813); each index is the class id in the masks.
VOC21 = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table",
    "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor",
)
# Other names for some classes, by index: those that SCLIP (arXiv 2312.01597, its repository's configs) asks for, as
# several methods after it do. They name what the background is, so it needs no threshold.
SCLIP_BACKGROUND = (
    "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed", "building",
    "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "floor", "hill", "rail",
    "fence",
)
SCLIP_PERSON = (
    "person", "person in shirt", "person in jeans", "person in dress", "person in sweater", "person in skirt",
    "person in jacket",
)
# fmt: on
SCLIP_NAMES = {
    0: SCLIP_BACKGROUND,
    4: ("ship",),
    15: SCLIP_PERSON,
    16: ("pottedplant",),
    20: ("television monitor", "tv monitor", "monitor", "television", "screen"),
}


def open_voc2012(root: Path, split: str) -> Benchmark:
    """VOC2012/, or a folder that holds it, such as VOCdevkit."""
    index = f"ImageSets/Segmentation/{split}.txt"
    base = find(root, index, f"VOC2012/{index}", f"VOCdevkit/VOC2012/{index}").parents[2]
    pairs = [
        Pair(key, base / "JPEGImages" / f"{key}.jpg", base / "SegmentationClass" / f"{key}.png")
        for key in read_keys(base / index)
    ]
    return Benchmark("voc2012", split, VOC21, pairs, png_reader(class_values(len(VOC21))), SCLIP_NAMES)
