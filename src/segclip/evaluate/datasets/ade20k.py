"""ADE20K: the 150 classes of its scene parsing benchmark, no background."""

from pathlib import Path

from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, find, match_stems, png_reader

# The official names; each index is the mask's value less one.
# fmt: off
ADE150 = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver", "airplane", "dirt track",
    "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van",
    "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel",
    "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce",
    "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board",
    "shower", "radiator", "glass", "clock", "flag",
)
# fmt: on


def open_ade20k(root: Path, split: str) -> Benchmark:
    """ADEChallengeData2016/, or the folder that holds it."""
    folder = {"val": "validation", "train": "training"}[split]
    base = find(root, f"annotations/{folder}", f"ADEChallengeData2016/annotations/{folder}").parents[1]
    meaning = {0: IGNORED, **{i + 1: i for i in range(len(ADE150))}}
    pairs = match_stems(base / "images" / folder, base / "annotations" / folder)
    return Benchmark("ade20k", split, ADE150, pairs, png_reader(meaning))
