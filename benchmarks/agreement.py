"""Share of pixels on which two models agree: python benchmarks/agreement.py SET_FOLDER MODEL OTHER

Both segment each photo of SET_FOLDER (see mini_quality.py), given the labels in its mask, with background.
To measure what 8-bit storage costs, let MODEL be the float32 file of a run and OTHER `mini`.
"""

import sys
from pathlib import Path

import numpy as np

from segclip import Segmenter
from segclip.evaluate.datasets.benchmark import IGNORED
from segclip.evaluate.datasets.folder import open_folder


def main(folder: Path, model: str, other: str) -> None:
    photos = open_folder(folder)
    segmenters = [Segmenter(name) for name in (model, other)]
    equal = pixels = 0
    for photo, truth in map(photos.load, photos.pairs):
        present = [photos.names[int(i)] for i in np.unique(truth) if 0 < i < IGNORED]
        if present:
            first, second = (segmenter.segment(photo, present).labels for segmenter in segmenters)
            equal += int((first == second).sum())
            pixels += first.size
    print(f"equal labels: {equal / pixels:.4%} of {pixels} pixels")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
