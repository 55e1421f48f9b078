"""How well a model segments photos with masks: python benchmarks/mini_quality.py SET_FOLDER [MODEL] [--protocol paper]

SET_FOLDER is what `segclip evaluate folder --root` takes, class 0 being the background. Each photo is encoded once.
Prints, pooled over all photos:
  told     given only the photo's own labels, over labelled pixels: mIoU and pixel accuracy; also for PASCAL VOC's
           twenty classes alone, if the folder has voc21.json
  named    given all names, over labelled pixels: foreground mIoU
  whole    given all names, with background, over all pixels: mIoU
  one      given each label of a photo alone, with background: mean IoU
  regions  mIoU with the best name for each region of a window; and the same for Felzenszwalb's superpixels, merged by
           colour to the same number of regions
"""

import argparse
import json
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer
from rich.progress import track
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.ndimage import mean
from skimage.color import rgb2lab

from segclip import Segmenter
from segclip.data.superpixels import find_superpixels
from segclip.evaluate.datasets.benchmark import IGNORED, Mask
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.diagnosis import Diagnosis, things_of
from segclip.evaluate.evaluator import Evaluator, cut_batches, words_of
from segclip.evaluate.metrics import Confusion, count_pairs, name_by_truth
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.protocols import PROTOCOLS
from segclip.segment.protocols.paper import region_owner


def main() -> None:
    parser = argparse.ArgumentParser(description="How well a model segments photos with masks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="open")
    options = parser.parse_args()
    report(options.folder, options.model, options.protocol)


def report(folder: Path, model: str, protocol: str) -> None:
    photos = open_folder(folder)
    voc = _voc_things(folder)
    evaluator = Evaluator(Segmenter(model, protocol), photos, words_of(photos))
    size = len(photos.names)
    diagnosis = Diagnosis(evaluator)
    told_voc, whole, merged = (Confusion(size) for _ in range(3))
    alone: list[float] = []
    batches = cut_batches(photos.pairs)
    for batch in track(evaluator.encode(batches), folder.name, total=len(batches)):
        for _, encoded, truth in batch:
            diagnosis.add(encoded, truth)
            things, present = things_of(truth)
            alone += [_one(evaluator, encoded, truth, i) for i in present]
            if of_voc := [i for i in present if i in voc]:
                voc_truth = np.where(np.isin(things, of_voc), things, IGNORED)
                told_voc.add(voc_truth, evaluator.label_among(encoded, of_voc))
            whole.add(truth, evaluator.label(encoded))
            merged.add_counts(_count_superpixels(encoded, truth, size))
    told, named, regions = diagnosis.told, diagnosis.named, diagnosis.regions
    print(f"{model}, protocol {protocol}, {len(photos.pairs)} photos of {folder.name}")
    print(f"told: mIoU {told.miou():.3f}, pixel accuracy {told.pixel_accuracy():.3f}", end="")
    print(f"; VOC's things mIoU {told_voc.miou():.3f}" if voc else "")
    print(f"named, {size - 1} names: foreground mIoU {named.miou():.3f}")
    print(f"whole, {size} classes: mIoU {whole.miou():.3f}")
    print(f"one label alone: mean IoU {np.mean(alone):.3f}")
    print(f"regions: mIoU {regions.miou():.3f}; superpixels merged to the same number {merged.miou():.3f}")


def _voc_things(folder: Path) -> dict[int, int]:
    file = folder / "voc21.json"
    return {int(i): v for i, v in json.loads(file.read_text())["from_index"].items()} if file.exists() else {}


def _one(evaluator: Evaluator, encoded: EncodedPhoto, truth: Integer[np.ndarray, "H W"], wanted: int) -> float:
    names = [evaluator.benchmark.names[wanted]]
    found = evaluator.segmenter.label(encoded, names).labels[truth != IGNORED] == 1
    right = truth[truth != IGNORED] == wanted
    return float((found & right).sum() / (found | right).sum())


def _count_superpixels(encoded: EncodedPhoto, truth: Mask, classes: int) -> Int[np.ndarray, "_ 3"]:
    """Like `Evaluator.count_regions`, with each window's superpixels merged to the number of the model's regions."""
    windows, output = encoded.windows[0], encoded.outputs[0]
    owners = region_owner(output, (windows.side, windows.side)).cpu().numpy()
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
