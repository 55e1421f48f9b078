"""How well a model labels photos with masks: python benchmarks/mini_quality.py SET_FOLDER [MODEL]

SET_FOLDER has `images/`, `masks/` (index PNGs, 255 ignored, 0 the background) and `classes.json`. Prints, pooled over
all photos: told which labels a photo has (mIoU and pixel accuracy over labelled pixels), against all names (foreground
mIoU over labelled pixels), and over whole photos with background (mIoU).
"""

import sys
from pathlib import Path

import numpy as np
from rich.progress import track

from segclip import Segmenter, load
from segclip.data.benchmarks import open_folder
from segclip.data.masks import IGNORED
from segclip.metrics import Confusion


def main(folder: Path, model: str) -> None:
    photos = open_folder(folder)
    segmenter = Segmenter(load(model))
    told, named, whole = (Confusion(len(photos.names)) for _ in range(3))
    things_named = photos.names[1:]
    for pair in track(photos.pairs, folder.name):
        photo, truth = photos.load(pair)
        things = np.where(truth == 0, IGNORED, truth)
        present = [int(i) for i in np.unique(things) if i != IGNORED]
        if present:
            found = segmenter.segment(photo, [photos.names[i] for i in present], background=None).labels
            told.add(things, np.array([0, *present])[found])
            named.add(things, segmenter.segment(photo, things_named, background=None).labels)
        whole.add(truth, segmenter.segment(photo, things_named).labels)
    accuracy = told.pixel_accuracy()
    print(f"told the photo's labels: mIoU {told.miou():.3f}, pixel accuracy {accuracy:.3f}")
    print(f"against {len(things_named)} names, labelled pixels: foreground mIoU {named.miou():.3f}")
    print(f"whole photos with background: mIoU {whole.miou():.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "mini")
