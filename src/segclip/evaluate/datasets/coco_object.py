"""COCO-Object: COCO's 80 things, everything else being background; photos of COCO 2017."""

import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from segclip.data.photos import MAX_PIXELS
from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, Mask, MaskError, Pair, find, match_stems, png_reader
from segclip.evaluate.datasets.voc2012 import SCLIP_BACKGROUND, SCLIP_PERSON
from segclip.segment.coco import pycocotools_mask

log = logging.getLogger(__name__)

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
LONGEST = 2_000_000  # pixels along a shape's outline: drawing it takes some 60 bytes for each
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
    """Images by file name, and the shapes in each image by its id; shapes of images that are not listed are named."""
    try:
        table = json.loads(file.read_text("utf-8"))
        images = {str(image["file_name"]): image for image in table["images"]}
        shapes: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images.values()}
        annotations = list(table["annotations"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: expected COCO's instances, with images and annotations ({error!r})") from error
    if any(Path(name).name != name for name in images):
        raise ValueError(f"{file}: file names with folders in them; expected names of photos alone")
    if not len(images) == len(shapes) == len(table["images"]):
        raise ValueError(f"{file}: several images have one file name or one id; mend the file")
    strange = []
    for shape in annotations:
        try:
            shapes[shape["image_id"]].append(shape)
        except (KeyError, TypeError):
            strange.append(str(shape.get("id"))[:40] if isinstance(shape, dict) else f"{shape!r}"[:40])
    if strange:
        shown = ", ".join(strange[:5]) + (" ..." if len(strange) > 5 else "")
        log.warning("%s: %d annotations of photos that it does not list: left out: ids %s", file, len(strange), shown)
    return images, shapes


def _draw_instances(pair: Pair, images: dict[str, dict[str, Any]], shapes: dict[int, list[dict[str, Any]]]) -> Mask:
    """Crowds below, then the largest first, so that small things lie on top."""
    image = images[pair.photo.name]
    height, width = _read_size(pair, image)
    outlines = []
    for shape in shapes[image["id"]]:
        try:
            thing = 1 + THING_IDS.index(shape["category_id"])
            outline = _read_outline(shape["segmentation"], height, width)
            area = shape["area"] if _is_number(shape.get("area")) else sum(outline[1::2])
            outlines.append((not shape.get("iscrowd"), -area, thing, outline))
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise MaskError(
                f"{pair.mask}: annotation {shape.get('id')!s:.40}, an annotation of {pair.photo.name}, cannot be drawn "
                f"({error!r:.200}); mend or remove it"
            ) from error
    mask = np.zeros((height, width), np.uint8)
    for *_, thing, outline in sorted(outlines, key=lambda one: one[:2]):
        mask[draw_counts(outline, height, width)] = thing
    return mask


def _read_size(pair: Pair, image: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a photo, as the file has them: a mask of that size is made."""
    try:
        height, width = int(image["height"]), int(image["width"])
    except (KeyError, TypeError, ValueError, OverflowError):
        height = width = 0
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        size = f"height {image.get('height')!r:.40}, width {image.get('width')!r:.40}"
        raise MaskError(f"{pair.mask}: {pair.photo.name} has {size}; expected pixels, at most {MAX_PIXELS} in all")
    return height, width


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _read_outline(segmentation: Any, height: int, width: int) -> list[int]:
    """The run lengths of what COCO says of a shape: polygons, of which those without an area draw nothing; or runs.

    Raises:
        ValueError: or others, where it says nothing that can be drawn.
    """
    if not isinstance(segmentation, list):
        counts = segmentation["counts"]
        counts = counts if isinstance(counts, list) else read_counts(counts)
        if min(counts, default=0) < 0 or sum(counts) != height * width or list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths that are not those of {height}x{width} pixels")
        return counts
    polygons = [np.array(polygon, np.float64) for polygon in segmentation]
    if any(polygon.ndim != 1 or len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError("expected polygons of numbers x, y, x, y ...")
    drawn = [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than three corners have no area
    if not drawn:
        return [height * width]
    edges = sum(np.abs(np.diff(polygon.reshape(-1, 2), axis=0)).max(axis=1).sum() for polygon in drawn)
    if edges > LONGEST or max(np.abs(polygon).max() for polygon in drawn) > LONGEST:
        raise ValueError(f"a polygon that is {edges:.0f} pixels long")
    coco_mask = pycocotools_mask()
    merged = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in drawn], height, width))
    return read_counts(merged["counts"])


def read_counts(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths as numbers.

    A letter has five bits of a number; from the fourth on, a number is what to add to the one two before it
    (rleFrString in pycocotools, which trusts its input).

    Raises:
        ValueError: it has none.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode() if isinstance(text, str) else text:
        code = letter - 48
        value |= (code & 31) << shift
        shift += 5
        if shift > 64:
            raise ValueError("run lengths of no numbers")
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths that end within a number")
    return counts


def draw_counts(counts: list[int], height: int, width: int) -> Bool[ndarray, "H W"]:
    """Run lengths, of pixels outside and inside in turn, down the columns -> the mask."""
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T
