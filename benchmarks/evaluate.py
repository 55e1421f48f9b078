"""Speed and memory of evaluation: python benchmarks/evaluate.py SET_FOLDER [--photos 50] [--protocol open]

SET_FOLDER is what `segclip evaluate folder --root` takes. Prints, for `mini` on this machine's CPU:
  time    evaluation of the photos relative to the model alone on their windows, alternating batch by batch
  labels  encoding and counting with 171 classes relative to 20
  memory  peak of `segclip evaluate` in a separate process, for a quarter of the photos and for all
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from measuring import run_python

from segclip import Segmenter
from segclip.evaluate.datasets.benchmark import IGNORED, Benchmark, Mask
from segclip.evaluate.datasets.coco_stuff import COCO_STUFF, COCO_THINGS
from segclip.evaluate.datasets.folder import open_folder
from segclip.evaluate.evaluator import Evaluator, cut_batches, words_of
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.protocols import PROTOCOLS
from segclip.segment.windows import encode_windows

T = TypeVar("T")
Batch = list[tuple[str, EncodedPhoto, Mask]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of evaluation.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="open")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    benchmark = open_folder(options.folder)
    benchmark = replace(benchmark, pairs=benchmark.pairs[: options.photos])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(benchmark.pairs)} photos")
    report_time(benchmark, options.protocol)
    report_labels(benchmark, options.protocol)
    report_memory(options.folder, options.photos, options.protocol)


def report_time(benchmark: Benchmark, protocol: str) -> None:
    evaluator = Evaluator(Segmenter("mini", protocol), benchmark, words_of(benchmark))
    batches = cut_batches(benchmark.pairs)
    encoded = evaluator.encode(batches)
    count(evaluator, next(encoded))  # warm up: embed texts, touch memory
    whole = bare = 0.0
    for _ in batches[1:]:
        seconds, batch = timed(lambda: next(encoded))
        whole += seconds + timed(lambda batch=batch: count(evaluator, batch))[0]
        bare += timed(lambda batch=batch: encode(evaluator.segmenter, batch))[0]
    print(f"time, protocol {protocol}: {whole:.1f} s; the model alone {bare:.1f} s; ratio {whole / bare:.2f}")


def report_labels(benchmark: Benchmark, protocol: str) -> None:
    """Count the same windows and pixels with 20 and with 171 names; the true class of a pixel does not matter."""
    segmenter, names, few = Segmenter("mini", protocol), COCO_THINGS + COCO_STUFF, 20
    evaluators = [
        Evaluator(segmenter, replace(benchmark, names=classes), tuple((name,) for name in classes))
        for classes in (names[:few], names)
    ]
    batches = cut_batches(benchmark.pairs)
    ratios = []
    for number, batch in enumerate(evaluators[0].encode(batches)):
        known = [(key, photo, np.where(truth == IGNORED, truth, truth % few)) for key, photo, truth in batch]
        if not number:  # warm up: embed texts, touch memory
            for evaluator in evaluators:
                count(evaluator, known)
        encoding = timed(lambda known=known: encode(segmenter, known))[0]
        fewer, more = (encoding + timed(lambda e=e, known=known: count(e, known))[0] for e in evaluators)
        ratios.append(more / fewer)
    print(f"labels, protocol {protocol}: {len(names)} relative to {few} classes {statistics.median(ratios):.3f}")


def report_memory(folder: Path, photos: int, protocol: str) -> None:
    command = ["-m", "segclip", "evaluate", "folder", "--root", str(folder), "--protocol", protocol]
    with tempfile.TemporaryDirectory() as out:
        peaks = [
            run_python([*command, "--limit", str(number), "--json", f"{out}/{number}.json"])[1]
            for number in (photos // 4, photos)
        ]
    print(f"memory: {photos // 4} photos {peaks[0] / 1e6:.0f} MB, {photos} photos {peaks[1] / 1e6:.0f} MB")


def encode(segmenter: Segmenter, batch: Batch) -> None:
    """Run the model alone on the windows of some photos."""
    encode_windows(segmenter.encoder, [windows for _, photo, _ in batch for windows in photo.windows])


def count(evaluator: Evaluator, batch: Batch) -> None:
    for key, photo, truth in batch:
        evaluator.count(key, photo, truth)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
