"""Speed of inference: python benchmarks/inference.py

Prints, on this machine's CPU with all its cores:
  window   one 224 px window, 20 labels, ViT-B/16 in float32 (encode, score, label map) against a forward pass of
           transformers' CLIPVisionModel of the same size, the two taking turns; the weights are random
  labels   the same window with 1 to 1,000 labels, their text being embedded already
  command  `segclip segment` of one photo with `mini`, in a process of its own: seconds and peak memory
  import   `import segclip` in a process of its own, and with its public names, which bring torch
Medians. Needs the extra `test` (transformers).
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from measuring import run_python
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

import segclip

ROUNDS = 15
WARM_UP = 3
SIDE = 224
LABEL_COUNTS = (1, 20, 200, 1000)


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS} rounds")
    model = segclip.SegCLIP(segclip.ModelConfig())
    photo = np.array(Image.fromarray(skimage.data.chelsea()).resize((SIDE, SIDE)))
    for protocol in ("paper", "open"):
        segmenter = segclip.Segmenter(model, protocol)
        report_window(segmenter, photo)
        report_labels(segmenter, photo)
    report_command()
    report_import()


def report_window(segmenter: segclip.Segmenter, photo: np.ndarray) -> None:
    reference = CLIPVisionModel(CLIPVisionConfig(patch_size=16, image_size=SIDE)).eval()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    labels = label_names(20)

    def forward() -> None:
        with torch.inference_mode():
            reference(pixel_values=pixels)

    ours, theirs = medians([lambda: segmenter.segment(photo, labels), forward])
    name = f"window, protocol {segmenter.protocol}"
    print(f"{name}: {ours * 1e3:.0f} ms; CLIPVisionModel {theirs * 1e3:.0f} ms; ratio {ours / theirs:.2f}")


def report_labels(segmenter: segclip.Segmenter, photo: np.ndarray) -> None:
    def run(count: int) -> Callable[[], object]:
        labels = label_names(count)
        return lambda: segmenter.segment(photo, labels)

    seconds = medians([run(count) for count in LABEL_COUNTS])
    cells = ", ".join(f"{count}: {s * 1e3:.0f} ms" for count, s in zip(LABEL_COUNTS, seconds, strict=True))
    growth = seconds[-1] / seconds[0] - 1
    print(f"labels, protocol {segmenter.protocol}: {cells}; {growth:+.1%} from 1 to {LABEL_COUNTS[-1]:,}")


def report_command() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "chelsea.png"
        Image.fromarray(skimage.data.chelsea()).save(photo)
        labels = ["cat", "dog", "car", "boat"]
        command = ["-m", "segclip", "segment", str(photo), "--labels", *labels, "--out", folder]
        runs = [run_python(command) for _ in range(3)]
    seconds, memory = statistics.median(s for s, _ in runs), max(m for _, m in runs)
    print(f"command: {seconds:.1f} s, peak memory {memory / 1e6:.0f} MB")


def report_import() -> None:
    programs = ("import segclip", "from segclip import *")
    alone, names = (statistics.median(run_python(["-c", program])[0] for _ in range(5)) for program in programs)
    print(f"import: {alone:.2f} s, with its public names {names:.2f} s; Python's own start is in both")


def label_names(count: int) -> list[str]:
    return [f"thing number {i}" for i in range(count)]


def medians(functions: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each; they take turns, so that a slow moment of the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(WARM_UP + ROUNDS):
        for function, own in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if turn >= WARM_UP:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


if __name__ == "__main__":
    main()
