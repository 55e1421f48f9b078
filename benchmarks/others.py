"""Comparison with alternatives: python benchmarks/others.py [--rounds N] [--plot FILE]

Time from a photo and labels to a label map, on this machine's CPU with all its cores. Weights are random, in the
published sizes, except those of `mini`:
  SegCLIP    ours, ViT-B/16, protocol `paper`; and `mini`; both cache the embeddings of labels after the first photo
  GroupViT   transformers' GroupViTModel with output_segmentation (ViT-S, 224 px)
  CLIPSeg    transformers' CLIPSegForImageSegmentation (ViT-B/16, 352 px), labels in batches of 20
Prints seconds and peak memory for 1, 20 and 200 labels (a photo of 500x375), for larger photos and for more photos
(20 labels), each in a separate process; the systems alternate. --plot draws it (needs matplotlib).
"""

import argparse
import os
import statistics
import tempfile
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
from segclip.model.towers.clip import DEVIATION, MEAN
from segclip.text.tokenizers import tokenizer_for

System = Callable[[Sequence[np.ndarray], Sequence[str]], object]
PHOTO, LABELS = (500, 375), 20  # width and height, and number, where something else varies
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
                # The model takes one photo per label.
                out = model(input_ids=ids, pixel_values=pixels.expand(len(ids), -1, -1, -1)).logits
                logits.append(out.reshape(len(ids), *out.shape[-2:]))
            found.append(label_map(torch.cat(logits), photo))
        return found

    return segment


SYSTEMS: dict[str, Callable[[], System]] = {"SegCLIP": ours, "mini": mini, "GroupViT": groupvit, "CLIPSeg": clipseg}
CACHING = ("SegCLIP", "mini")  # the embeddings of labels, after the first photo


def tokens(labels: Sequence[str]) -> torch.Tensor:
    ids = tokenizer_for(ModelConfig().text)([f"a photo of a {label}." for label in labels])
    return F.pad(ids, (0, TOKENS - ids.shape[1]))


def square(photos: Sequence[np.ndarray], side: int) -> torch.Tensor:
    images = [Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC) for photo in photos]
    return normalise(np.stack([np.asarray(image) for image in images]), MEAN, DEVIATION)


def label_map(logits: torch.Tensor, photo: np.ndarray) -> np.ndarray:
    """(K,h,w) -> the best label of each pixel of the photo, as in their example code."""
    return F.interpolate(logits[None], photo.shape[:2], mode="bilinear")[0].argmax(dim=0).numpy()


def make_photos(size: tuple[int, int], count: int = 1) -> list[np.ndarray]:
    return [np.asarray(Image.fromarray(skimage.data.chelsea()).resize(size))] * count


def make_labels(count: int) -> list[str]:
    return [f"thing number {i}" for i in range(count)]


# What is measured: (labels, size, photos); each row varies one of them.
ROWS: dict[str, list[tuple[int, tuple[int, int], int]]] = {
    "labels": [(count, PHOTO, 1) for count in COUNTS],
    "pixels": [(LABELS, size, 1) for size in SIZES],
    "photos": [(LABELS, PHOTO, count) for count in PHOTOS],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Comparison with alternatives.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        name, file, *numbers = options.only
        Path(file).write_text(str(measure(name, [int(number) for number in numbers], options.rounds)))
        return
    print(f"torch {torch.__version__}, {os.cpu_count()} threads, medians of {options.rounds}; seconds, peak MB")
    print("labels", "size", "photos", *SYSTEMS, sep="\t")
    found: dict[tuple, dict[str, tuple[float, float]]] = {}
    for cell in dict.fromkeys(cell for row in ROWS.values() for cell in row):
        labels, (width, height), photos = cell
        numbers = list(map(str, (labels, width, height, photos)))
        found[cell] = {name: run_process(name, numbers, options.rounds) for name in SYSTEMS}
        cells = (f"{seconds:.2f} s, {memory:.0f} MB" for seconds, memory in found[cell].values())
        print(labels, f"{width}x{height}", photos, *cells, sep="\t", flush=True)
    if options.plot:
        draw(found, options.plot)


def run_process(name: str, numbers: list[str], rounds: int) -> tuple[float, float]:
    """Seconds of the work itself and peak memory in MB, in a separate process."""
    with tempfile.NamedTemporaryFile() as file:
        _, memory = run_python([__file__, "--only", name, file.name, *numbers, "--rounds", str(rounds)])
        return float(file.read()), memory / 1e6


def measure(name: str, numbers: Sequence[int], rounds: int) -> float:
    """Median seconds, after an untimed call on a small photo."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    labels, width, height, photos = numbers
    segment, wanted, work = SYSTEMS[name](), make_labels(labels), make_photos((width, height), photos)
    segment([work[0][:32, :32]], wanted if name in CACHING else wanted[:1])
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        segment(work, wanted)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def draw(found: dict[tuple, dict[str, tuple[float, float]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(ROWS), figsize=(11, 6), sharey="row")
    for number, (unit, row) in enumerate(zip(("seconds", "peak MB"), axes, strict=True)):
        for axis, (what, cells) in zip(row, ROWS.items(), strict=True):
            names = [f"{w}x{h}" if what == "pixels" else str(n if what == "labels" else p) for n, (w, h), p in cells]
            for name in SYSTEMS:
                axis.plot(names, [found[cell][name][number] for cell in cells], marker="o", label=name)
            axis.set(xlabel=what, yscale="log")
            axis.grid(alpha=0.3)
        row[0].set_ylabel(unit)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
