"""Photos with masks: the field's benchmarks, each from its download as people have it, and folders of one's own."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from segclip.data.photos import PHOTO_SUFFIXES, open_photo
from segclip.evaluate.datasets.class_names import (
    ADE150,
    CITYSCAPES19,
    COCO81,
    COCO_STUFF,
    COCO_THINGS,
    CONTEXT60,
    CONTEXT_LABELS,
    CONTEXT_PNG60,
    VOC21,
)
from segclip.evaluate.masks import CLASSES, IGNORED, Mask, MaskError, read_mask, translate
from segclip.utils.optional import require

SetName = Literal[
    "voc2012", "context60", "context59", "coco-object", "coco-stuff", "ade20k", "cityscapes", "folder"
]  # fmt: skip
SETS: tuple[SetName, ...] = get_args(SetName)
SPLITS = ("val", "train")


@dataclass(frozen=True)
class Pair:
    """A photo and where its mask is."""

    key: str
    photo: Path
    mask: Path


@dataclass(frozen=True)
class Benchmark:
    """A set of photos with masks.

    Attributes:
        name: as the command names it.
        split: "val" or "train"; empty for a folder.
        names: of the classes, by their index in the masks; "background" first where the set has one.
        pairs: photos and masks, sorted by key.
        read: a pair's mask. Raises MaskError.
    """

    name: str
    split: str
    names: tuple[str, ...]
    pairs: Sequence[Pair]
    read: Callable[[Pair], Mask]

    @property
    def background(self) -> bool:
        """Whether class 0 is the background."""
        return self.names[0] == "background"

    def load(self, pair: Pair) -> tuple[UInt8[np.ndarray, "H W 3"], Mask]:
        """A photo and its mask. Raises PhotoError or MaskError, naming the file."""
        photo, mask = open_photo(pair.photo), self.read(pair)
        if photo.shape[:2] != mask.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, photo.shape)]
            raise MaskError(f"{pair.mask}: {sizes[0]} pixels, but its photo {pair.photo} has {sizes[1]}; mend the pair")
        return photo, mask


def open_benchmark(name: SetName, root: Path, split: str = "val") -> Benchmark:
    """Open a set.

    Args:
        name: one of SETS.
        root: its folder: VOCdevkit; the folder of val2017; ADEChallengeData2016; that of leftImg8bit; or one with
            images/, masks/ and classes.json.
        split: "val" or "train"; of no meaning for "folder".

    Raises:
        ValueError: a folder that does not hold the set; the message names the file that was expected.
    """
    if name not in SETS or split not in SPLITS:
        what, known = (f"set {name!r}", SETS) if name not in SETS else (f"split {split!r}", SPLITS)
        raise ValueError(f"unknown {what}; known are {', '.join(known)}")
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --root names the one that holds the set")
    openers: dict[SetName, Callable[[Path, str], Benchmark]] = {
        "voc2012": _open_voc,
        "context60": partial(_open_context, background=True),
        "context59": partial(_open_context, background=False),
        "coco-object": _open_coco_object,
        "coco-stuff": _open_coco_stuff,
        "ade20k": _open_ade,
        "cityscapes": _open_cityscapes,
    }
    return open_folder(root) if name == "folder" else openers[name](root, split)


def open_folder(root: Path) -> Benchmark:
    """Photos in images/, index PNGs in masks/ (255 ignored), classes.json; see `open_benchmark`."""
    file = _find(root, "classes.json")
    try:
        classes = {int(i): str(name) for i, name in json.loads(file.read_text("utf-8"))["classes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{file}: expected {{"classes": {{"0": "cat", "1": "dog"}}}} ({error})') from error
    if sorted(classes) != list(range(len(classes))) or not 1 <= len(classes) <= CLASSES:
        raise ValueError(f"{file}: numbers its classes {sorted(classes)[:8]}; expected 0, 1, 2 ..., at most {CLASSES}")
    names = tuple(classes[i] for i in range(len(classes)))
    return Benchmark("folder", "", names, _match(root / "images", root / "masks"), _same(len(names)))


def _open_voc(root: Path, split: str) -> Benchmark:
    index = f"ImageSets/Segmentation/{split}.txt"
    base = _find(root, index, f"VOC2012/{index}", f"VOCdevkit/VOC2012/{index}").parents[2]
    pairs = [
        Pair(key, base / "JPEGImages" / f"{key}.jpg", base / "SegmentationClass" / f"{key}.png")
        for key in _keys(base / index)
    ]
    return Benchmark("voc2012", split, VOC21, pairs, _same(len(VOC21)))


def _open_context(root: Path, split: str, *, background: bool) -> Benchmark:
    """Masks of mmsegmentation's conversion (SegmentationClassContext), official PNGs, or official .mat files."""
    lists = ("SegmentationContext", "Main")
    places = ("", "VOC2010/", "VOCdevkit/VOC2010/")
    index = _find(root, *(f"{place}ImageSets/{name}/{split}.txt" for place in places for name in lists))
    base = index.parents[2]
    folders = ("SegmentationClassContext", "59_context_labels", "trainval")
    candidates = [place / name for name in folders for place in dict.fromkeys((base, base.parent, root))]
    masks = next((folder for folder in candidates if folder.is_dir()), None)
    if masks is None:
        raise ValueError(
            f"{base}: no masks; expected SegmentationClassContext/*.png, 59_context_labels/*.png or trainval/*.mat"
        )
    # The set of 59 leaves out what is none of them.
    shift = {i: i if background else (i - 1 if i else IGNORED) for i in range(len(CONTEXT60))}
    names = CONTEXT60 if background else CONTEXT60[1:]
    suffix, read = "png", partial(_read_png, meaning={**shift, IGNORED: IGNORED})
    if masks.name == "59_context_labels":
        meaning = {i: shift[CONTEXT60.index(name)] for i, name in enumerate(CONTEXT_PNG60)}
        read = partial(_read_png, meaning={**meaning, IGNORED: IGNORED})
    elif masks.name == "trainval":
        labels = _find(masks, "labels.txt", "../labels.txt")
        suffix, read = "mat", partial(_read_mat, meaning={i: shift[k] for i, k in _context_labels(labels).items()})
    pairs = [Pair(key, base / "JPEGImages" / f"{key}.jpg", masks / f"{key}.{suffix}") for key in _keys(index)]
    return Benchmark(f"context{len(names)}", split, names, pairs, read)


def _context_labels(file: Path) -> dict[int, int]:
    """labels.txt, with a line like "2: aeroplane" for each of 459 labels -> the class of CONTEXT60 of each."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text("utf-8").splitlines() if line.strip())
        numbers = {name.strip(): int(number) for number, name in lines.items()}
        known = {numbers[CONTEXT_LABELS.get(name, name)]: i for i, name in enumerate(CONTEXT60) if i}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file}: expected the download's own lines like `2: aeroplane` ({error})") from error
    return {number: known.get(number, 0) for number in (0, *numbers.values())}


def _open_coco_object(root: Path, split: str) -> Benchmark:
    """From the stuff-and-things maps, else from the instances; everything but the 80 things is background."""
    photos = _find(root, f"{split}2017", f"images/{split}2017")
    maps = _coco_maps(root, split)
    if maps is not None:
        things = {number - 1: i for i, number in enumerate(_THING_IDS, start=1)}
        meaning = {value: things.get(value, 0) for value in (*things, *_STUFF_VALUES, IGNORED)}
        return Benchmark("coco-object", split, COCO81, _match(photos, maps), partial(_read_png, meaning=meaning))
    file = root / "annotations" / f"instances_{split}2017.json"
    if not file.is_file():
        raise ValueError(
            f"{root}: no masks; expected stuffthingmaps/{split}2017/*.png or annotations/instances_{split}2017.json"
        )
    images, shapes = _read_instances(file)
    pairs = [Pair(Path(name).stem, photos / name, file) for name in sorted(images)]
    return Benchmark("coco-object", split, COCO81, pairs, partial(_draw_instances, images=images, shapes=shapes))


def _open_coco_stuff(root: Path, split: str) -> Benchmark:
    photos = _find(root, f"{split}2017", f"images/{split}2017")
    maps = _coco_maps(root, split)
    if maps is None:
        raise ValueError(f"{root}: no stuffthingmaps/{split}2017/*.png; unpack stuffthingmaps_trainval2017.zip there")
    values = [number - 1 for number in _THING_IDS] + list(_STUFF_VALUES)
    meaning = {**{value: i for i, value in enumerate(values)}, IGNORED: IGNORED}
    names = COCO_THINGS + COCO_STUFF
    return Benchmark("coco-stuff", split, names, _match(photos, maps), partial(_read_png, meaning=meaning))


def _open_ade(root: Path, split: str) -> Benchmark:
    folder = {"val": "validation", "train": "training"}[split]
    base = _find(root, f"annotations/{folder}", f"ADEChallengeData2016/annotations/{folder}").parents[1]
    meaning = {0: IGNORED, **{i + 1: i for i in range(len(ADE150))}}
    pairs = _match(base / "images" / folder, base / "annotations" / folder)
    return Benchmark("ade20k", split, ADE150, pairs, partial(_read_png, meaning=meaning))


def _open_cityscapes(root: Path, split: str) -> Benchmark:
    masks, photos = _find(root, f"gtFine/{split}"), _find(root, f"leftImg8bit/{split}")
    pairs = []
    for photo in sorted(photos.glob("*/*_leftImg8bit.png")):
        key = photo.name.removesuffix("_leftImg8bit.png")
        pairs.append(Pair(key, photo, masks / photo.parent.name / f"{key}_gtFine_labelIds.png"))
    if not pairs:
        raise ValueError(f"{photos}: no CITY/*_leftImg8bit.png; unpack leftImg8bit_trainvaltest.zip there")
    meaning = dict.fromkeys((*range(34), IGNORED), IGNORED) | {v: i for i, v in enumerate(_CITYSCAPES_IDS)}
    return Benchmark("cityscapes", split, CITYSCAPES19, pairs, partial(_read_png, meaning=meaning))


# The ids of COCO's 80 things, in the order of COCO81; its maps hold the id less one.
_THING_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
_STUFF_VALUES = range(91, 182)
# Label ids of the 19 classes that Cityscapes evaluates, in the order of CITYSCAPES19.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def _coco_maps(root: Path, split: str) -> Path | None:
    folders = (
        root / name / f"{split}2017" for name in ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
    )
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
    coco_mask = require("pycocotools.mask", extra="annotate")
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
            mask[coco_mask.decode(outline).astype(bool)] = 1 + _THING_IDS.index(shape["category_id"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MaskError(f"{pair.mask}: an annotation of {pair.photo.name} cannot be drawn ({error!r})") from error
    return mask


def _read_png(pair: Pair, meaning: Mapping[int, int]) -> Mask:
    return read_mask(pair.mask, meaning)


def _same(classes: int) -> Callable[[Pair], Mask]:
    return partial(_read_png, meaning={**{i: i for i in range(classes)}, IGNORED: IGNORED})


def _read_mat(pair: Pair, meaning: Mapping[int, int]) -> Mask:
    from scipy.io import loadmat  # here: few need it

    try:
        values = loadmat(pair.mask, variable_names=["LabelMap"])["LabelMap"]
    except FileNotFoundError:
        raise MaskError(f"{pair.mask}: no such mask; copy it there, or leave its photo out") from None
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        raise MaskError(f"{pair.mask}: no LabelMap can be read ({error!r}); unpack trainval.tar.gz again") from error
    return translate(np.asarray(values), meaning, str(pair.mask))


def _find(root: Path, *candidates: str) -> Path:
    """The first of these files or folders that is there."""
    for candidate in candidates:
        if (path := root / candidate).exists():
            return path
    raise ValueError(f"{root}: expected {' or '.join(candidates)} there; --root names the folder that holds it")


def _keys(index: Path) -> list[str]:
    keys = index.read_text("utf-8").split()
    strange = [key for key in keys if Path(key).name != key]
    if not keys or strange:
        raise ValueError(f"{index}: expected one photo's name a line" + (f", not {strange[0]!r}" if strange else ""))
    return sorted(keys)


def _match(photos: Path, masks: Path) -> list[Pair]:
    """Photos and masks of the same stem; where one of them is missing, reading the pair says so."""
    for folder in (photos, masks):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; photos and masks are expected in {photos} and {masks}")
    images = {p.stem: p for p in photos.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES}
    # mmsegmentation leaves its own versions beside the official ones.
    truths = {p.stem: p for p in masks.glob("*.png") if not p.stem.endswith("TrainIds")}
    if not images or not truths:
        raise ValueError(f"{photos if not images else masks}: no {'photos' if not images else 'PNGs'} in it")
    return [
        Pair(key, images.get(key, photos / f"{key}.jpg"), truths.get(key, masks / f"{key}.png"))
        for key in sorted(images.keys() | truths.keys())
    ]
