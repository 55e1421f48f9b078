"""Small sets in the layouts of the benchmarks' downloads, with masks as these encode them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from segclip.evaluate.datasets.context import CONTEXT60, CONTEXT_LABELS

SIZE = (40, 60)  # height and width of every photo


def write_photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(str(path)))
    Image.fromarray(generator.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)


def write_mask(path: Path, *values: int, palette: bool = False, mode: str = "L") -> np.ndarray:
    """Equal stripes of the values, from the left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.array(values)[np.arange(SIZE[1]) * len(values) // SIZE[1]]
    mask = np.broadcast_to(stripes, SIZE).astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(np.ascontiguousarray(mask))
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    (image.convert("RGB") if mode == "RGB" else image).save(path)
    return mask


def write_list(path: Path, *keys: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key}\n" for key in keys))


def write_folder(root: Path, *masks: tuple[int, ...], names: tuple[str, ...] = ("background", "cat", "dog")) -> Path:
    """The layout `folder`: a photo and a mask of stripes for each of `masks`."""
    for number, values in enumerate(masks):
        write_photo(root / "images" / f"{number}.jpg")
        write_mask(root / "masks" / f"{number}.png", *values)
    (root / "classes.json").write_text(json.dumps({"classes": dict(enumerate(names))}))
    return root


def write_voc(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    write_list(base / "ImageSets/Segmentation/val.txt", "2007_000033")
    write_photo(base / "JPEGImages/2007_000033.jpg")
    write_mask(base / "SegmentationClass/2007_000033.png", 0, 1, 20, 255, palette=True)


def write_context(root: Path, kind: str) -> None:
    """PASCAL Context's photos, with masks as mmsegmentation converts them, as PNGs, or as .mat files."""
    base = root / "VOC2010"
    write_list(base / "ImageSets/SegmentationContext/val.txt", "2008_000002")
    write_photo(base / "JPEGImages/2008_000002.jpg")
    if kind == "converted":  # alphabetical: background, airplane, bag, wood
        write_mask(base / "SegmentationClassContext/2008_000002.png", 0, 1, 2, 59, palette=True)
    elif kind == "png":  # PASCAL's twenty first: background, airplane, bag, wood
        write_mask(root / "59_context_labels/2008_000002.png", 0, 1, 21, 59, palette=True)
    else:
        labels = sorted({*(CONTEXT_LABELS.get(name, name) for name in CONTEXT60[1:]), "accordion", "zoo"})
        (root / "trainval").mkdir()
        (root / "trainval/labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(labels, start=1)))
        numbers = [1 + labels.index(name) for name in ("zoo", "aeroplane", "bag", "wood")]
        mask = np.repeat(np.array(numbers, np.uint16), SIZE[1] // 4)[None].repeat(SIZE[0], 0)
        savemat(root / "trainval/2008_000002.mat", {"LabelMap": mask})


def write_coco_maps(root: Path) -> None:
    """Values: person, toothbrush (the last thing), banner (the first stuff), wood (the last), nothing."""
    write_photo(root / "val2017/000000000139.jpg")
    write_mask(root / "stuffthingmaps/val2017/000000000139.png", 0, 89, 91, 181, 255)


def write_coco_instances(root: Path) -> None:
    """A crowd of persons in the left half in RLE, a large and a small polygon over it, and a photo of nothing."""
    for number in (1, 2):
        write_photo(root / f"val2017/{number:012d}.jpg")
    height, width = SIZE
    crowd = {"size": [height, width], "counts": [0, height * width // 2, height * width // 2]}
    cat = [[10.0, 0, 50, 0, 50, height, 10, height]]
    ball = [[20.0, 10, 30, 10, 30, 20, 20, 20]]
    annotations = [
        {"image_id": 1, "category_id": 37, "segmentation": ball, "area": 100, "iscrowd": 0},
        {"image_id": 1, "category_id": 17, "segmentation": cat, "area": 1600, "iscrowd": 0},
        {"image_id": 1, "category_id": 1, "segmentation": crowd, "area": 1200, "iscrowd": 1},
    ]
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": height, "width": width} for n in (1, 2)]
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def write_ade(root: Path) -> None:
    base = root / "ADEChallengeData2016"
    write_photo(base / "images/validation/ADE_val_00000001.jpg")
    write_mask(base / "annotations/validation/ADE_val_00000001.png", 0, 1, 150)


def write_cityscapes(root: Path) -> None:
    stem = "frankfurt/frankfurt_000000_000294"
    write_photo(root / f"leftImg8bit/val/{stem}_leftImg8bit.png")
    write_mask(root / f"gtFine/val/{stem}_gtFine_labelIds.png", 0, 7, 33, 30)
