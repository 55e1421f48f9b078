"""A benchmark: python my_benchmark.py evaluate sea --root DIR"""

import sys
from pathlib import Path

from segclip.cli import main
from segclip.evaluate.datasets import DATASETS
from segclip.evaluate.datasets.benchmark import Benchmark, class_values, match_stems, png_reader


def open_sea(root: Path, split: str) -> Benchmark:
    """Photos in DIR/SPLIT/photos, masks in DIR/SPLIT/truth."""
    names = ("background", "boat", "water")
    pairs = match_stems(root / split / "photos", root / split / "truth")
    return Benchmark("sea", split, names, pairs, png_reader(class_values(len(names))))


DATASETS["sea"] = open_sea

if __name__ == "__main__":
    sys.exit(main())
