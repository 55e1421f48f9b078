"""What a person would use instead, side by side: python benchmarks/others.py [--rounds N] [--plot FILE]

From a photo and labels to a label map, on this machine's CPU with all its cores; weights are random, of the published
sizes, but for `mini`:
  SegCLIP    ours, ViT-B/16, protocol `paper`; and `mini`, both with the labels' text remembered after the first photo
  GroupViT   transformers' GroupViTModel with output_segmentation (ViT-S, 224 px)
  CLIPSeg    transformers' CLIPSegForImageSegmentation (ViT-B/16, 352 px), labels in batches of 20
Prints seconds for 1, 20 and 200 labels (a photo of 500x375), for photos of more pixels and for more photos (20 labels),
the systems taking turns; then each one's peak memory in a process of its own. --plot draws it (needs matplotlib).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from measuring import run_python
from PIL import Image
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, GroupViTConfig, GroupViTModel

from segclip import ModelConfig, SegCLIP, Segmenter
from segclip.data.normalise import normalise
from segclip.data.tokenizer import tokenizer_for

System = Callable[[Sequence[np.ndarray], Sequence[str]], object]
PHOTO, LABELS = (500, 375), 20  # width and height; of the rows that vary something else
COUNTS = (1, 20, 200)
SIZES = ((500, 375), (1000, 750), (2000, 1500))
PHOTOS = (1, 4)
TOKENS = 77
GROUPVIT_SIDE, CLIPSEG_SIDE, CLIPSEG_LABELS = 224, 352, 20


def ours() -> System:
    segmenter = Segmenter(SegCLIP(ModelConfig()), "paper")
    return lambda photos, labels: segmenter.segment_batch(photos, labels, background=None)


def mini() -> System:
    segmenter = Segmenter("mini", "paper")
    return lambda photos, labels: segmenter.segment_batch(photos, labels, background=None)


def groupvit() -> System:
    model = GroupViTModel(GroupViTConfig()).eval()

    @torch.inference_mode()
    def segment(photos: Sequence[np.ndarray], labels: Sequence[str]) -> list[np.ndarray]:
        output = model(input_ids=tokens(labels), pixel_values=square(photos, GROUPVIT_SIDE), output_segmentation=True)
        return [label_map(logits, photo) for logits, photo in zip(output.segmentation_logits, photos, strict=True)]

    return segment


def clipseg() -> System:
    model = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config={"patch_size": 16})).eval()

    @torch.inference_mode()
    def segment(photos: Sequence[np.ndarray], labels: Sequence[str]) -> list[np.ndarray]:
        found = []
        for photo in photos:
            pixels, logits = square([photo], CLIPSEG_SIDE), []
            for start in range(0, len(labels), CLIPSEG_LABELS):
                ids = tokens(labels[start : start + CLIPSEG_LABELS])
                # A photo a label: so the model is called.
                out = model(input_ids=ids, pixel_values=pixels.expand(len(ids), -1, -1, -1)).logits
                logits.append(out.reshape(len(ids), *out.shape[-2:]))
            found.append(label_map(torch.cat(logits), photo))
        return found

    return segment


SYSTEMS: dict[str, Callable[[], System]] = {"SegCLIP": ours, "mini": mini, "GroupViT": groupvit, "CLIPSeg": clipseg}


def tokens(labels: Sequence[str]) -> torch.Tensor:
    ids = tokenizer_for(ModelConfig().text)([f"a photo of a {label}." for label in labels])
    return F.pad(ids, (0, TOKENS - ids.shape[1]))


def square(photos: Sequence[np.ndarray], side: int) -> torch.Tensor:
    images = [Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC) for photo in photos]
    return normalise(np.stack([np.asarray(image) for image in images]))


def label_map(logits: torch.Tensor, photo: np.ndarray) -> np.ndarray:
    """(K,h,w) -> the best label of each pixel of the photo, as their users' code does it."""
    return F.interpolate(logits[None], photo.shape[:2], mode="bilinear")[0].argmax(dim=0).numpy()


def make_photos(size: tuple[int, int], count: int = 1) -> list[np.ndarray]:
    return [np.asarray(Image.fromarray(skimage.data.chelsea()).resize(size))] * count


def make_labels(count: int) -> list[str]:
    return [f"thing number {i}" for i in range(count)]


def cells() -> list[tuple[str, list[np.ndarray], list[str]]]:
    """What is measured: labels, then pixels, then photos."""
    rows = [(f"{count} labels", make_photos(PHOTO), make_labels(count)) for count in COUNTS]
    rows += [(f"{w}x{h} pixels", make_photos((w, h)), make_labels(LABELS)) for w, h in SIZES]
    return rows + [(f"{count} photos", make_photos(PHOTO, count), make_labels(LABELS)) for count in PHOTOS]


def main() -> None:
    parser = argparse.ArgumentParser(description="What a person would use instead, side by side.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", nargs=2, metavar=("SYSTEM", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    if options.only:
        _, photos, labels = cells()[int(options.only[1])]
        SYSTEMS[options.only[0]]()(photos, labels)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.rounds} rounds")
    systems = {name: make() for name, make in SYSTEMS.items()}
    print("", *systems, sep="\t")
    seconds, memory = {}, {}
    for row, photos, labels in cells():
        seconds[row] = measure(systems, photos, labels, options.rounds)
        print(row, *(f"{s:.2f} s" for s in seconds[row].values()), sep="\t", flush=True)
    del systems
    for number, (row, *_) in enumerate(cells()):
        commands = {name: [__file__, "--only", name, str(number)] for name in SYSTEMS}
        memory[row] = {name: run_python(command)[1] / 1e6 for name, command in commands.items()}
        print(row, *(f"{m:.0f} MB" for m in memory[row].values()), sep="\t", flush=True)
    if options.plot:
        draw(seconds, memory, options.plot)


def measure(systems: dict[str, System], photos: list[np.ndarray], labels: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of each; they take turns, after a first call for each that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(1 + rounds):
        for name, segment in systems.items():
            start = time.perf_counter()
            segment(photos, labels)
            if turn:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in found.items()}


def draw(seconds: dict[str, dict[str, float]], memory: dict[str, dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    spans = (("labels", COUNTS), ("pixels", SIZES), ("photos", PHOTOS))
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharey="row")
    for table, unit, row in ((seconds, "seconds", axes[0]), (memory, "MB at most", axes[1])):
        for axis, (what, values) in zip(row, spans, strict=True):
            keys = [key for key in table if key.endswith(what)]
            for name in SYSTEMS:
                axis.plot([str(value) for value in values], [table[key][name] for key in keys], marker="o", label=name)
            axis.set_xticks(range(len(keys)), [key.removesuffix(f" {what}") for key in keys])
            axis.set(xlabel=what, yscale="log")
            axis.grid(alpha=0.3)
        row[0].set_ylabel(unit)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
