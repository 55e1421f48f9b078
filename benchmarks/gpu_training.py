"""Training in gpu.sh: the paper's recipe on random pairs; and profiles of inference and training."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from gpu_inference import label_maps, peak_gigabytes, random_encoder, random_windows
from gpu_report import Figures, Report, Sizes
from measuring import count_operations, device_seconds, matrix_rate, median_seconds
from torch.profiler import ProfilerActivity, profile
from training import Step, random_pairs

from segclip.config import ModelConfig
from segclip.train.recipes import paper

SAMPLES = 34e6  # of the paper's run: 10 epochs over CC3M and COCO's captions
KERNELS = 20


def learn(report: Report, sizes: Sizes) -> None:
    """Fill the report."""
    rate = report.measure("matrix rate", 5, lambda: {"per second": matrix_rate(sizes.device, sizes.matrix)})
    speed = rate.get("per second", float("nan"))
    # The largest that fits is the fastest: it encodes nothing twice, or less than the others.
    any(measure_step(report, size, True, sizes, speed) for size in sorted(sizes.compiled, reverse=True))
    for size in sorted(sizes.micro_batches, reverse=True):
        measure_step(report, size, False, sizes, speed)


def measure_step(report: Report, micro_batch: int, compiled: bool, sizes: Sizes, rate: float) -> bool:
    """Whether it fitted into the memory and the time."""
    run = partial(images, micro_batch, compiled, sizes, rate)
    found = report.measure(title(micro_batch, compiled), 60 if compiled else 10, run)
    return "images per second" in found


def title(micro_batch: int, compiled: bool) -> str:
    return f"micro-batch {micro_batch}{', compiled' * compiled}"


def images(micro_batch: int, compiled: bool, sizes: Sizes, rate: float) -> Figures:
    """Images per second of a whole step: losses, gradients, clipping, fused AdamW."""
    peak_gigabytes()
    run = training_step(micro_batch, compiled, sizes)
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    seconds = median_seconds(run, sizes.device, max(1, sizes.rounds // 3), warm_up=1)
    memory = peak_gigabytes()
    one = min(min(sizes.micro_batches), micro_batch)
    step, batch = Step(replace(paper(), model=sizes.paper), sizes.device), random_pairs(one, sizes.device, sizes.paper)
    once = count_operations(partial(step, batch, torch.bfloat16)) / one
    step.model.requires_grad_(False)  # as FlopCounterMode requires
    ahead = count_operations(partial(embed, step, batch)) / one if micro_batch < sizes.batch else 0
    speed = sizes.batch / seconds
    return {
        "images per second": speed,
        "seconds per step": seconds,
        "memory GB": memory,
        "GFLOP per image": once / 1e9,
        "of encoding twice": ahead / 1e9,
        "share of the matrix rate": once * speed / rate,
        "with what is encoded twice": (once + ahead) * speed / rate,
        "hours for the paper's samples": SAMPLES / speed / 3600,
        "seconds of the first": first,
    }


@torch.no_grad()
def embed(step: Step, batch: object) -> None:
    with torch.autocast(step.device, torch.bfloat16):
        step.learner(batch, embed_only=True)


def training_step(micro_batch: int, compiled: bool, sizes: Sizes) -> Callable[[], object]:
    """A training step with the paper's recipe in bfloat16."""
    if compiled:
        torch._dynamo.reset()  # another size needs other programs
    config = replace(paper(), model=sizes.paper, batch=sizes.batch, micro_batch=micro_batch, compile=compiled)
    step = Step(config, sizes.device)
    return partial(step, random_pairs(sizes.batch, sizes.device, sizes.paper), torch.bfloat16)


def look(report: Report, sizes: Sizes) -> None:
    """Fill the report with profiles: of the largest batch of inference, and of the fastest training steps."""
    (name, config), batch = sizes.models[0], sizes.batches[-1]
    if sizes.compiled:  # the programs of the other steps are still on disk
        report.measure(f"{name}, batch {batch}, compiled", 20, partial(profile_batch, config, batch, True, sizes))
        best = fastest(report, sizes.compiled, True)
        report.measure(title(best, True), 25, partial(profile_step, best, True, sizes))
    report.measure(f"{name}, batch {batch}", 12, partial(profile_batch, config, batch, False, sizes))
    plain = fastest(report, sizes.micro_batches, False)
    report.measure(title(plain, False), 12, partial(profile_step, plain, False, sizes))


def fastest(report: Report, micro_batches: Sequence[int], compiled: bool) -> int:
    """Of the sizes that were measured, if any were; else the first."""
    file = report.file.with_name("training.json")
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return max(micro_batches, key=lambda size: known.get(title(size, compiled), {}).get("images per second", 0))


def profile_batch(config: ModelConfig, batch: int, compiled: bool, sizes: Sizes) -> Figures:
    encoder = random_encoder(config, compiled, sizes.device)
    return kernels(partial(label_maps, encoder, *random_windows(config, batch, sizes.device)), sizes.device)


def profile_step(micro_batch: int, compiled: bool, sizes: Sizes) -> Figures:
    return kernels(training_step(micro_batch, compiled, sizes), sizes.device)


def kernels(run: Callable[[], object], device: str) -> Figures:
    """The 20 kernels that take the most time; on a CPU, operators."""
    for _ in range(2):
        run()
    seconds = device_seconds(run, device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
    with profile(activities=activities) as found:
        run()
        if device != "cpu":
            torch.cuda.synchronize()
    # The profiler also records a span around the kernels of compiled code.
    marks = ("##", "Torch-Compiled Region")
    events = [e for e in found.key_averages() if e.device_type.name.lower() == device and not e.key.startswith(marks)]
    spent = {e.key: (e.self_cpu_time_total if device == "cpu" else e.self_device_time_total) / 1e3 for e in events}
    total = sum(spent.values())
    rows = sorted(events, key=lambda event: -spent[event.key])[:KERNELS]
    return {
        "milliseconds": seconds * 1e3,
        "of kernels": total,
        "share of the time a kernel runs": total / seconds / 1e3,
        "launches": sum(event.count for event in events),
        "top": [
            {
                "kernel": event.key[:160],
                "calls": event.count,
                "milliseconds": round(spent[event.key], 3),
                "share": round(spent[event.key] / total, 4),
            }
            for event in rows
        ],
    }
