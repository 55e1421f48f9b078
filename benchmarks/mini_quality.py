"""How well a model labels photos with masks: python benchmarks/mini_quality.py SET_FOLDER [MODEL]

SET_FOLDER has `images/`, `masks/` (index PNGs, 255 ignored, 0 the background) and `classes.json`. Prints, pooled over
all photos: told which labels a photo has (mIoU and pixel accuracy over labelled pixels), against all names (foreground
mIoU over labelled pixels), and over whole photos with background (mIoU).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from segclip import Segmenter, load


def main(folder: Path, model: str) -> None:
    classes = class_names(folder)
    names = [classes[i] for i in sorted(classes) if i]
    segmenter = Segmenter(load(model))
    told, named, whole = (np.zeros((len(classes), len(classes)), np.int64) for _ in range(3))
    for photo, truth in photos(folder):
        thing = (truth > 0) & (truth < 255)
        present = [int(i) for i in np.unique(truth[thing])]
        if present:
            found = segmenter.segment(photo, [classes[i] for i in present], background=None).labels
            count(told, truth[thing], np.array([0, *present])[found[thing]])
            count(named, truth[thing], segmenter.segment(photo, names, background=None).labels[thing])
        seen = truth < 255
        count(whole, truth[seen], segmenter.segment(photo, names).labels[seen])
    accuracy = np.trace(told) / told.sum()
    print(f"told the photo's labels: mIoU {miou(told[1:, 1:]):.3f}, pixel accuracy {accuracy:.3f}")
    print(f"against {len(names)} names, labelled pixels: foreground mIoU {miou(named[1:, 1:]):.3f}")
    print(f"whole photos with background: mIoU {miou(whole):.3f}")


def class_names(folder: Path) -> dict[int, str]:
    return {int(i): name for i, name in json.loads((folder / "classes.json").read_text())["classes"].items()}


def photos(folder: Path) -> Iterator[tuple[Path, np.ndarray]]:
    for mask in track(sorted((folder / "masks").glob("*.png")), folder.name):
        yield next((folder / "images").glob(f"{mask.stem}.*")), np.asarray(Image.open(mask))


def count(confusion: np.ndarray, truth: np.ndarray, found: np.ndarray) -> None:
    """Add to a table of pixels, truth by found."""
    size = len(confusion)
    confusion += np.bincount(truth.astype(np.int64) * size + found, minlength=size**2).reshape(size, size)


def miou(confusion: np.ndarray) -> float:
    """Mean over the classes of intersection by union, both pooled; classes that neither has are left out."""
    both = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - both
    return float((both[union > 0] / union[union > 0]).mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "mini")
