"""COCO-Stuff: COCO's 80 things and 91 kinds of stuff, no background; photos of COCO 2017."""

from pathlib import Path

from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, match_stems, png_reader
from segclip.evaluate.datasets.coco_object import COCO81, STUFF_VALUES, THING_IDS, find_maps, find_photos

# The official names.
COCO_THINGS = COCO81[1:]
# fmt: off
COCO_STUFF = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet",
    "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff",
    "dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower",
    "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement",
    "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock",
    "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs",
    "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other",
    "waterdrops", "window-blind", "window-other", "wood",
)
# fmt: on


def open_coco_stuff(root: Path, split: str) -> Benchmark:
    """From the maps of stuff and things; what is neither is ignored."""
    photos = find_photos(root, split)
    maps = find_maps(root, split)
    if maps is None:
        raise ValueError(f"{root}: no stuffthingmaps/{split}2017/*.png; unpack stuffthingmaps_trainval2017.zip there")
    values = [number - 1 for number in THING_IDS] + list(STUFF_VALUES)
    meaning = {**{value: i for i, value in enumerate(values)}, IGNORED: IGNORED}
    return Benchmark("coco-stuff", split, COCO_THINGS + COCO_STUFF, match_stems(photos, maps), png_reader(meaning))
