"""Inference in gpu.sh: windows per second with label maps, and a folder of photos end to end."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_report import Figures, Report, Sizes, has_mini
from jaxtyping import Float, Int, UInt8
from measuring import count_operations, matrix_rate, median_seconds
from numpy import ndarray
from PIL import Image
from torch import Tensor

from segclip.checkpoints.loading import load
from segclip.config import ModelConfig
from segclip.model.segclip import SegCLIP
from segclip.segment import many_photos
from segclip.segment.encoder import DType, Encoder
from segclip.segment.protocols.paper import region_owner, region_scores
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.train.initialization import initialize_centers

# Protocol, dtype, and how many threads label and write.
FOLDERS: tuple[tuple[str, DType, int], ...] = (
    ("open", "bfloat16", many_photos.FINISHERS),
    ("open", "bfloat16", 1),
    ("open", "float32", many_photos.FINISHERS),
    ("paper", "bfloat16", many_photos.FINISHERS),
)
LABELS = 20
SCALE = 100.0  # of cosines


def infer(report: Report, sizes: Sizes) -> None:
    """Fill the report."""
    rate = report.measure(
        "matrix rate", 5, lambda: {"per second": matrix_rate(sizes.device, sizes.matrix), "side": sizes.matrix}
    ).get("per second", float("nan"))
    for name, config in sizes.models:
        measure_windows(report, name, config, False, sizes, rate)
    for name, config in sizes.models if sizes.compiled else ():
        measure_windows(report, name, config, True, sizes, rate)
    name, config = sizes.models[-1]
    for protocol, dtype, threads in FOLDERS:
        title = f"folder, {name}, {protocol}, {dtype}, {threads} threads"
        report.measure(title, 15, partial(folder, name, config, protocol, dtype, threads, sizes))


def measure_windows(report: Report, name: str, config: ModelConfig, compiled: bool, sizes: Sizes, rate: float) -> None:
    titles = {batch: f"{name}, batch {batch}{', compiled' * compiled}" for batch in sizes.batches}
    chosen = [batch for batch in sizes.batches if report.wants(titles[batch])]
    for batch in chosen:
        needed = 45 if compiled and batch == chosen[0] else 8  # compiled once for all batch sizes
        report.measure(titles[batch], needed, partial(windows, config, batch, compiled, sizes, rate))


def windows(config: ModelConfig, batch: int, compiled: bool, sizes: Sizes, rate: float) -> Figures:
    """Windows per second in bfloat16, with label maps by the paper's protocol on the device."""
    encoder, side = random_encoder(config, compiled, sizes.device), config.image.side
    peak_gigabytes()
    run, start = partial(label_maps, encoder, *random_windows(config, batch, sizes.device)), time.perf_counter()
    run()
    first = time.perf_counter() - start
    seconds = median_seconds(run, sizes.device, sizes.rounds)
    alone = median_seconds(partial(encoder, run.args[1]), sizes.device, sizes.rounds)
    memory = peak_gigabytes()
    work = operations(config, sizes.device)
    return {
        "windows per second": batch / seconds,
        "without label maps": batch / alone,
        "side": side,
        "GFLOP per window": work / 1e9,
        "share of the matrix rate": work * batch / seconds / rate,
        "seconds of the first": first,
        "memory GB": memory,
    }


def operations(config: ModelConfig, device: str) -> int:
    """Floating-point operations of a window, counted on the model itself: the counter misses some inference layers."""
    model = SegCLIP(config).eval().requires_grad_(False).to(device)  # as FlopCounterMode requires
    pixels = torch.randn(1, 3, config.image.side, config.image.side).to(device)
    return count_operations(lambda: model.encode_image(pixels))


@lru_cache(maxsize=1)  # compiled once for all batch sizes
def random_encoder(config: ModelConfig, compiled: bool, device: str) -> Encoder:
    """The encoder of a random model, in bfloat16."""
    torch.manual_seed(0)
    return Encoder(SegCLIP(config).eval().requires_grad_(False).to(device), "bfloat16", compile=compiled, share=True)


def random_windows(config: ModelConfig, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Random windows, and random embeddings of labels."""
    side, generator = config.image.side, torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, side, side, 3), dtype=torch.uint8, generator=generator)
    return pixels.to(device), torch.randn(LABELS, config.embed, generator=generator).to(device)


@torch.inference_mode()
def label_maps(
    encoder: Encoder, windows: UInt8[Tensor, "B H W 3"], embeds: Float[Tensor, "K E"]
) -> Int[Tensor, "B pixels"]:
    """The label of each pixel under the paper's protocol, without background."""
    output = encoder(windows)
    labels = region_scores(output, embeds, SCALE).argmax(dim=-1)
    return labels.gather(1, region_owner(output, (windows.shape[1], windows.shape[2])).flatten(1))


def structured_model(config: ModelConfig, photos: UInt8[ndarray, "N S S 3"]) -> SegCLIP:
    """A random model with centers from k-means, which assign patches clearly; random centers hardly do."""
    torch.manual_seed(0)
    model = SegCLIP(config).eval()
    with torch.no_grad():
        features = model.image.encode_patches(model.image.normalise(photos)).numpy()
    initialize_centers(model, features, 0)
    return model


def draw_photo(number: int, size: tuple[int, int]) -> UInt8[ndarray, "H W 3"]:
    """A photo of soft blobs of colour with a little noise, about as hard for JPEG as a real one."""
    generator = np.random.default_rng(number)
    blobs = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    drawn = np.asarray(blobs.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.int16)
    return (drawn + generator.integers(-8, 9, (*size, 3), dtype=np.int16)).clip(0, 255).astype(np.uint8)


class Watch:
    """Adds up seconds by name, over all threads."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        with self._lock:
            self.seconds[name] += time.perf_counter() - start

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **options: Any) -> Any:
            with self(name):
                return work(*given, **options)

        return watched


def folder(name: str, config: ModelConfig, protocol: str, dtype: DType, threads: int, sizes: Sizes) -> Figures:
    """Time of `segclip segment` for a folder of photos, and of each of its parts, summed over the threads.

    The GPU's share is its time between CUDA events around each batch that it encodes.
    """
    torch.manual_seed(0)
    model = load("mini", sizes.device) if name == "mini" and has_mini() else SegCLIP(config).eval().to(sizes.device)
    segmenter, watch, labels = Segmenter(model, protocol, dtype=dtype), Watch(), [f"thing {i}" for i in range(LABELS)]
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    plain = segmenter.encoder

    def encoder(windows: Tensor, **options: Any) -> Any:
        if sizes.device == "cpu":
            return plain(windows, **options)
        events.append(tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)))  # pyright: ignore
        events[-1][0].record()
        output = plain(windows, **options)
        events[-1][1].record()
        return output

    with tempfile.TemporaryDirectory() as out:
        named = []
        for number in range(sizes.photos):
            named.append((Path(out) / f"{number}.jpg", str(number)))
            Image.fromarray(draw_photo(number, sizes.photo)).save(named[-1][0], quality=90)
        segmenter.segment_batch([named[0][0]] * 2, labels)  # warm

        def finish(result: Segmentation, path: Path, stem: str) -> None:
            result.save(out, stem)

        encoder.device = plain.device  # pyright: ignore
        segmenter.encoder = encoder  # pyright: ignore
        segmenter.encode = watch.around("encode", segmenter.encode)
        segmenter.label = watch.around("label", segmenter.label)
        with (
            mock.patch.object(many_photos, "FINISHERS", threads),
            mock.patch.object(many_photos, "open_photo", watch.around("read", many_photos.open_photo)),
        ):
            start = time.perf_counter()
            results = many_photos.segment_all(segmenter, named, labels, "auto", "auto", watch.around("write", finish))
            found = [result for _, result in results]
            seconds = time.perf_counter() - start
    assert not any(found), found[0]
    busy = sum(before.elapsed_time(after) for before, after in events) / 1e3
    return {
        "photos per second": sizes.photos / seconds,
        "seconds": seconds,
        "of all threads": dict(watch.seconds),
        "encoding on the device": busy,
        "share of the time it encodes": busy / seconds,
        "weights": "mini" if name == "mini" and has_mini() else "random",
    }


def peak_gigabytes() -> float:
    """Peak memory of the GPU since the last call."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak
