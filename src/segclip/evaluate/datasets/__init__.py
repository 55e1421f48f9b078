"""Photos with masks: the field's benchmarks, each from its download as people have it, and folders of one's own.

A benchmark is one file with its class names and a function (root, split) -> Benchmark; the table DATASETS names it.
"""

from collections.abc import Callable
from pathlib import Path

from segclip.evaluate.datasets.ade20k import open_ade20k
from segclip.evaluate.datasets.benchmark import Benchmark
from segclip.evaluate.datasets.cityscapes import open_cityscapes
from segclip.evaluate.datasets.coco_object import open_coco_object
from segclip.evaluate.datasets.coco_stuff import open_coco_stuff
from segclip.evaluate.datasets.context import open_context59, open_context60
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.datasets.voc2012 import open_voc2012
from segclip.utils.tables import choose

DATASETS: dict[str, Callable[[Path, str], Benchmark]] = {
    "voc2012": open_voc2012,
    "context60": open_context60,
    "context59": open_context59,
    "coco-object": open_coco_object,
    "coco-stuff": open_coco_stuff,
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
    "folder": open_folder,
}
SPLITS = ("val", "train")


def open_benchmark(name: str, root: Path, split: str = "val") -> Benchmark:
    """Open a set.

    Args:
        name: one of DATASETS.
        root: its folder: VOCdevkit; the folder of val2017; ADEChallengeData2016; that of leftImg8bit; or one with
            images/, masks/ and classes.json.
        split: "val" or "train"; of no meaning for "folder".

    Raises:
        ValueError: a folder that does not hold the set; the message names the file that was expected.
    """
    open_set = choose(DATASETS, name, "set")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --root names the one that holds the set")
    return open_set(root, split)
