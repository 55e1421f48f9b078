"""COCO-Object: COCO's 80 things, everything else being background; photos of COCO 2017."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, Mask, MaskError, Pair, find, match_stems, png_reader
from segclip.evaluate.datasets.voc2012 import SCLIP_BACKGROUND, SCLIP_PERSON
from segclip.segment.coco import pycocotools_mask

# fmt: off
# Class names as the paper uses them (arXiv 2211.14813).
COCO81 = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
# COCO's ids of these things, in the same order; its maps hold the id less one.
THING_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
STUFF_VALUES = range(91, 182)  # of its maps
# See voc2012.py. "bed" is left out of SCLIP's background: it is a class.
SCLIP_NAMES = {0: tuple(name for name in SCLIP_BACKGROUND if name != "bed"), 1: (*SCLIP_PERSON, "body")}


def open_coco_object(root: Path, split: str) -> Benchmark:
    """From the stuff-and-things maps, else from the instances."""
    photos = find_photos(root, split)
    maps = find_maps(root, split)
    if maps is not None:
        things = {number - 1: i for i, number in enumerate(THING_IDS, start=1)}
        meaning = {value: things.get(value, 0) for value in (*things, *STUFF_VALUES, IGNORED)}
        return Benchmark("coco-object", split, COCO81, match_stems(photos, maps), png_reader(meaning), SCLIP_NAMES)
    file = root / "annotations" / f"instances_{split}2017.json"
    if not file.is_file():
        raise ValueError(
            f"{root}: no masks; expected stuffthingmaps/{split}2017/*.png or annotations/instances_{split}2017.json"
        )
    images, shapes = _read_instances(file)
    pairs = [Pair(Path(name).stem, photos / name, file) for name in sorted(images)]
    read = partial(_draw_instances, images=images, shapes=shapes)
    return Benchmark("coco-object", split, COCO81, pairs, read, SCLIP_NAMES)


def find_photos(root: Path, split: str) -> Path:
    """COCO's photos. Raises ValueError where they are not there."""
    return find(root, f"{split}2017", f"images/{split}2017")


def find_maps(root: Path, split: str) -> Path | None:
    """COCO's maps of stuff and things, where they are there."""
    names = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
    folders = (root / name / f"{split}2017" for name in names)
    return next((folder for folder in folders if folder.is_dir()), None)


def _read_instances(file: Path) -> tuple[dict[str, dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Images by file name, and the shapes in each image by its id."""
    try:
        table = json.loads(file.read_text("utf-8"))
        images = {str(image["file_name"]): image for image in table["images"]}
        shapes: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images.values()}
        for shape in table["annotations"]:
            shapes[shape["image_id"]].append(shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected COCO's instances, with images and annotations ({error!r})") from error
    if any(Path(name).name != name for name in images):
        raise ValueError(f"{file}: file names with folders in them; expected names of photos alone")
    return images, shapes


def _draw_instances(pair: Pair, images: dict[str, dict[str, Any]], shapes: dict[int, list[dict[str, Any]]]) -> Mask:
    """Crowds below, then the largest first, so that small things lie on top."""
    coco_mask = pycocotools_mask()
    image = images[pair.photo.name]
    height, width = int(image["height"]), int(image["width"])
    mask = np.zeros((height, width), np.uint8)
    try:
        for shape in sorted(shapes[image["id"]], key=lambda s: (-s.get("iscrowd", 0), -s["area"])):
            outline = shape["segmentation"]
            if isinstance(outline, list):
                outline = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                outline = coco_mask.frPyObjects(outline, height, width)
            mask[coco_mask.decode(outline).astype(bool)] = 1 + THING_IDS.index(shape["category_id"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MaskError(f"{pair.mask}: an annotation of {pair.photo.name} cannot be drawn ({error!r})") from error
    return mask
