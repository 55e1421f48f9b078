"""What one perfect part would give `open`: python benchmarks/ceilings.py SET_FOLDER [MODEL] [--every K]

SET_FOLDER is what `segclip evaluate folder --root` takes, class 0 being the background. Prints, as mini_quality.py
measures them:
  bars        mean IoU of a label given alone and taken to be there, of all labels and of main things, where a label
              ends: with the best of eight bars for all photos, and for each photo and label
  presence    a photo's labels together: each found or said to be absent, and all taken to be there
  background  the same, where the truth has background
  whole       mIoU over all classes, whole photos with background: of the photo's own labels alone; the same, where the
              truth has background
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from quality_measures import iou_of, ious_of, main_thing
from rich.progress import track

from segclip import Segmenter
from segclip.evaluate.datasets.benchmark import Benchmark
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.diagnosis import things_of
from segclip.evaluate.evaluator import Evaluator, cut_batches, words_of
from segclip.evaluate.metrics import Confusion
from segclip.segment.protocols.open import OpenProtocol

LEVELS = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description="What one perfect part would give `open`.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="take every K-th photo")
    options = parser.parse_args()
    if options.every < 1:
        parser.error(f"--every {options.every}: expected 1 or more")
    photos = open_folder(options.folder)
    photos = replace(photos, pairs=photos.pairs[:: options.every])
    for name, value in measure(photos, Segmenter(options.model)).items():
        print(f"{name}: {value:.3f}")


def measure(photos: Benchmark, segmenter: Segmenter) -> dict[str, float]:
    """The ceilings, by what they are."""
    names, classes = photos.names, len(photos.names)
    at_levels = [segmenter.with_protocol(OpenProtocol(level=level)) for level in LEVELS]
    alone, mains, asked, there, bounded = [], [], [], [], []
    own, perfect = Confusion(classes), Confusion(classes)
    batches = cut_batches(photos.pairs)
    for batch in track(Evaluator(segmenter, photos, words_of(photos)).encode(batches), total=len(batches)):
        for _, encoded, truth in batch:
            present = things_of(truth)[1]
            if not present:
                continue
            labels, named = [names[i] for i in present], np.array([0, *present])
            asked += ious_of(segmenter.label(encoded, labels).labels, truth, present)
            found = segmenter.label(encoded, labels, presence=None).labels
            there += ious_of(found, truth, present)
            own.add(truth, named[found])
            within = np.where(truth == 0, 0, segmenter.label(encoded, labels, background=None).labels)
            bounded += ious_of(within, truth, present)
            perfect.add(truth, named[within])
            for label, wanted in zip(labels, present, strict=True):
                maps = [one.label(encoded, [label], presence=None).labels for one in at_levels]
                alone.append([iou_of(one == 1, truth, wanted) for one in maps])
                if wanted == main_thing(truth):
                    mains.append(alone[-1])
    return {
        "bars, labels alone, one for all": float(np.mean(alone, axis=0).max()),
        "bars, labels alone, the best for each": float(np.max(alone, axis=1).mean()),
        "bars, main things, one for all": float(np.mean(mains, axis=0).max()),
        "bars, main things, the best for each": float(np.max(mains, axis=1).mean()),
        "presence, as found": float(np.mean(asked)),
        "presence, all there": float(np.mean(there)),
        "background, true": float(np.mean(bounded)),
        f"whole, {classes} classes, the photo's own labels": own.miou(),
        "whole, and the true background": perfect.miou(),
    }


if __name__ == "__main__":
    main()
