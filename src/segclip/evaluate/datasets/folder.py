"""A folder of one's own photos with masks."""

import json
from pathlib import Path

from segclip.evaluate.datasets.benchmark import MAX_CLASSES, Benchmark, class_values, find, match_stems, png_reader


def open_folder(root: Path, split: str = "") -> Benchmark:
    """Photos in images/, index PNGs in masks/ (255 ignored), classes.json; a folder has no splits.

    Raises:
        ValueError: one of them is missing or cannot be used.
    """
    file = find(root, "classes.json")
    try:
        classes = {int(i): name for i, name in json.loads(file.read_text("utf-8"))["classes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{file}: expected {{"classes": {{"0": "cat", "1": "dog"}}}} ({error})') from error
    if sorted(classes) != list(range(len(classes))) or not 1 <= len(classes) <= MAX_CLASSES:
        numbers = sorted(classes)[:8]
        raise ValueError(f"{file}: numbers its classes {numbers}; expected 0, 1, 2 ..., at most {MAX_CLASSES}")
    names = tuple(classes[i] for i in range(len(classes)))
    for i, name in enumerate(names):
        if not isinstance(name, str) or name in names[:i]:
            raise ValueError(f"{file}: class {i} is called {name!r:.80}; expected a text that no other class has")
    pairs = match_stems(root / "images", root / "masks")
    return Benchmark("folder", "", names, pairs, png_reader(class_values(len(names))))
