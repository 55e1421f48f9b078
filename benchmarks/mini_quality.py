"""How well a model segments photos with masks: python benchmarks/mini_quality.py SET_FOLDER [MODEL] [--protocol paper]

SET_FOLDER is what `segclip evaluate folder --root` takes, class 0 being the background. Each photo is encoded once.
`--every 8` takes every eighth photo; `--json FILE` writes the figures; `--sheet FILE` draws 24 photos, chosen by
`--seed`: the photo, what is found in it given its own labels with background, and the truth.
Prints, pooled over all photos:
  told     given only the photo's own labels, over labelled pixels: mIoU and pixel accuracy; also for PASCAL VOC's
           twenty classes alone, if the folder has voc21.json
  named    given all names, over labelled pixels: foreground mIoU and pixel accuracy
  whole    given all names, with background, over all pixels: mIoU
  regions  mIoU with the best name for each region of a window; and the same for Felzenszwalb's superpixels, merged by
           colour to the same number of regions
and, on whole photos with the background found automatically:
  asked    given the photo's own labels together: mean IoU over photos and labels
  one      given each label of a photo alone: the same
  main1    given a photo's main thing alone, the one that covers most of it, at least 5%: mean IoU over the photos
           that have one
  main10   given it among ten names, the others absent from the photo and drawn by the photo's name: its mean IoU
  found    of the main things, among ten names, the share that gets a pixel
  dropped  of the absent names there, the share that gets none
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int
from quality_measures import answered, draw_among, iou_of, ious_of, main_thing
from quality_sheet import PHOTOS, SUFFIXES, Sheet
from rich.progress import track
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.ndimage import mean
from skimage.color import rgb2lab

from segclip import Segmentation, Segmenter
from segclip.data.superpixels import find_superpixels
from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, Mask
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.diagnosis import Diagnosis, things_of
from segclip.evaluate.evaluator import Evaluator, cut_batches, words_of
from segclip.evaluate.metrics import Confusion, count_pairs, name_by_truth
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.protocols import PROTOCOLS
from segclip.segment.protocols.paper import region_owner
from segclip.utils.files import atomic

Figures = dict[str, float | None]  # None: there was nothing to measure it on
THINGS = ("asked", "one", "main1", "main10", "found", "dropped")


def main() -> None:
    parser = argparse.ArgumentParser(description="How well a model segments photos with masks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="open")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="take every K-th photo")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help=f"draw {PHOTOS} photos; {', '.join(SUFFIXES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of photos for the sheet")
    options = parser.parse_args()
    if options.every < 1:
        parser.error(f"--every {options.every}: expected 1 or more")
    if options.sheet and options.sheet.suffix.lower() not in SUFFIXES:
        parser.error(f"--sheet {options.sheet}: expected a file that ends in {' or '.join(SUFFIXES)}")
    photos = open_folder(options.folder)
    photos = replace(photos, pairs=photos.pairs[:: options.every])
    sheet = Sheet(choose(photos, options.seed)) if options.sheet else None
    figures = measure(options.folder, photos, Segmenter(options.model, options.protocol), sheet)
    print(f"{options.model}, protocol {options.protocol}, {len(photos.pairs)} photos of {options.folder.name}")
    show(figures, len(photos.names))
    if sheet:
        sheet.save(options.sheet)
    if options.json:
        about = {"set": options.folder.name, "model": options.model, "protocol": options.protocol}
        with atomic(options.json) as file:
            file.write_text(json.dumps({**about, "photos": len(photos.pairs), **figures}, indent=2) + "\n")


def choose(photos: Benchmark, seed: int) -> list[str]:
    """The keys of the photos for the sheet."""
    keys = [pair.key for pair in photos.pairs]
    return random.Random(seed).sample(keys, min(PHOTOS, len(keys)))


def measure(folder: Path, photos: Benchmark, segmenter: Segmenter, sheet: Sheet | None = None) -> Figures:
    """All figures, by name; a sheet gets its tiles on the way."""
    evaluator = Evaluator(segmenter, photos, words_of(photos))
    pooled, things = Pooled(evaluator, _voc_things(folder)), Things(evaluator)
    batches = cut_batches(photos.pairs)
    for batch in track(evaluator.encode(batches), folder.name, total=len(batches)):
        for key, encoded, truth in batch:
            pooled.add(encoded, truth)
            present = things_of(truth)[1]
            if present:
                found = things.add(key, encoded, truth, present)
                if sheet:
                    sheet.add(key, found, truth, present)
    return pooled.figures() | things.figures()


def show(figures: Figures, classes: int) -> None:
    """Print the figures; `classes` is how many the set has, with the background."""
    f = {name: "-" if value is None else f"{value:.3f}" for name, value in figures.items()}
    voc = f"; VOC's things mIoU {f['told_voc']}" if figures["told_voc"] is not None else ""
    print(f"told: mIoU {f['told']}, pixel accuracy {f['told_accuracy']}{voc}")
    print(f"named, {classes - 1} names: foreground mIoU {f['named']}, pixel accuracy {f['named_accuracy']}")
    print(f"whole, {classes} classes: mIoU {f['whole']}")
    print(f"regions: mIoU {f['regions']}; superpixels merged to the same number {f['superpixels']}")
    print(f"asked, a photo's labels together: mean IoU {f['asked']}; one label alone: {f['one']}")
    print(f"main thing: main1, alone, mean IoU {f['main1']}; main10, among ten names, {f['main10']}")
    print(f"among ten names: {f['found']} of main things get a pixel, {f['dropped']} of absent names get none")


class Pooled:
    """Counts of pixels, pooled over photos.

    Args:
        evaluator: of the model.
        voc: classes of the set that are among PASCAL VOC's; empty: their figure is left out.
    """

    def __init__(self, evaluator: Evaluator, voc: set[int]) -> None:
        self.evaluator, self.voc, self.diagnosis = evaluator, voc, Diagnosis(evaluator)
        self.classes = len(evaluator.benchmark.names)
        self.told_voc, self.whole, self.merged = (Confusion(self.classes) for _ in range(3))

    def add(self, encoded: EncodedPhoto, truth: Mask) -> None:
        """Count a photo."""
        self.diagnosis.add(encoded, truth)
        self.whole.add(truth, self.evaluator.label(encoded))
        self.merged.add_counts(_count_superpixels(encoded, truth, self.classes))
        things, present = things_of(truth)
        if of_voc := [i for i in present if i in self.voc]:
            voc_truth = np.where(np.isin(things, of_voc), things, IGNORED)
            self.told_voc.add(voc_truth, self.evaluator.label_among(encoded, of_voc))

    def figures(self) -> Figures:
        told, named = self.diagnosis.told, self.diagnosis.named
        return {
            "told": told.miou(),
            "told_accuracy": told.pixel_accuracy(),
            "told_voc": self.told_voc.miou() if self.voc else None,
            "named": named.miou(),
            "named_accuracy": named.pixel_accuracy(),
            "whole": self.whole.miou(),
            "regions": self.diagnosis.regions.miou(),
            "superpixels": self.merged.miou(),
        }


class Things:
    """What each thing gets when it is asked for, with the background found automatically.

    Args:
        evaluator: of the model.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.names = evaluator, evaluator.benchmark.names
        self.values: dict[str, list[float]] = {name: [] for name in THINGS}

    def add(self, key: str, encoded: EncodedPhoto, truth: Mask, present: Sequence[int]) -> Segmentation:
        """Ask for the things of a photo; gives what was found for all of them together."""
        together = self._ask(encoded, present)
        self.values["asked"] += ious_of(together.labels, truth, present)
        alone = {i: iou_of(self._ask(encoded, [i]).labels == 1, truth, i) for i in present}
        self.values["one"] += alone.values()
        if (main := main_thing(truth)) is not None:
            self.values["main1"].append(alone[main])
            self._add_among(encoded, truth, main, draw_among(key, main, present, len(self.names)))
        return together

    def _add_among(self, encoded: EncodedPhoto, truth: Mask, main: int, among: Sequence[int]) -> None:
        labels, place = self._ask(encoded, among).labels, among.index(main)
        self.values["main10"].append(iou_of(labels == 1 + place, truth, main))
        there = answered(labels, len(among))
        self.values["found"].append(there.pop(place))
        self.values["dropped"] += [not one for one in there]

    def _ask(self, encoded: EncodedPhoto, classes: Sequence[int]) -> Segmentation:
        return self.evaluator.segmenter.label(encoded, [self.names[i] for i in classes])

    def figures(self) -> Figures:
        return {name: float(np.mean(values)) if values else None for name, values in self.values.items()}


def _voc_things(folder: Path) -> set[int]:
    """The set's classes that are PASCAL VOC's."""
    file = folder / "voc21.json"
    return {int(i) for i in json.loads(file.read_text())["from_index"]} if file.exists() else set()


def _count_superpixels(encoded: EncodedPhoto, truth: Mask, classes: int) -> Int[np.ndarray, "_ 3"]:
    """Like `Evaluator.count_regions`, with each window's superpixels merged to the number of the model's regions."""
    windows, output = encoded.windows[0], encoded.outputs[0]
    owners = region_owner(output, windows.window).cpu().numpy()
    found = []
    for crop, part, owner in zip(windows.crops(), windows.crops_of(truth), owners, strict=True):
        ids = find_superpixels(crop, "opencv")
        colours = np.stack(
            [mean(channel, ids, range(ids.max() + 1)) for channel in np.moveaxis(rgb2lab(crop), -1, 0)], 1
        )
        count = len(np.unique(owner))
        groups = fcluster(linkage(colours, "ward"), count, "maxclust") if len(colours) > 1 else np.ones(1, int)
        merged = (groups - 1)[ids][: part.shape[0], : part.shape[1]]
        found.append(count_pairs(part, name_by_truth(part, merged, classes), classes))
    return np.concatenate(found)


if __name__ == "__main__":
    main()
