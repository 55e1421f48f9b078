"""Training in gpu.sh: the paper's recipe on random pairs; and profiles of inference and training."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from gpu_inference import label_maps, peak_gigabytes, random_encoder, random_windows
from gpu_report import Figures, Report, Sizes
from measuring import count_operations, device_seconds, matrix_rate, median_seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training import Step, random_pairs

from segclip.config import ModelConfig
from segclip.train.distributed import BLOCKS
from segclip.train.recipes import paper

SAMPLES = 34e6  # of the paper's run: 10 epochs over CC3M and COCO's captions
KERNELS = 20


def learn(report: Report, sizes: Sizes) -> None:
    """Fill the report."""
    rate = report.measure("matrix rate", 5, lambda: {"per second": matrix_rate(sizes.device, sizes.matrix)})
    ways = [(size, False) for size in sizes.micro_batches] + [(size, True) for size in sizes.compiled]
    for size, compiled in ways:
        title = f"micro-batch {size}{', compiled' * compiled}"
        run = partial(images, size, compiled, sizes, rate.get("per second", float("nan")))
        report.measure(title, 45 if compiled else 15, run)


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
    step = Step(replace(paper(), model=sizes.paper, batch=sizes.batch, micro_batch=micro_batch), sizes.device)
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64  # towers, masked branch and decoder differ in shapes
        for module in step.learner.modules():
            if isinstance(module, BLOCKS):
                module.compile(dynamic=False)
    return partial(step, random_pairs(sizes.batch, sizes.device, sizes.paper), torch.bfloat16)


def look(report: Report, sizes: Sizes) -> None:
    """Fill the report with profiles."""
    batch, middle = sizes.batches[-1], sizes.micro_batches[len(sizes.micro_batches) // 2]
    name, config = sizes.models[0]
    for compiled in (False, True) if sizes.compiled else (False,):
        title = f"{name}, batch {batch}{', compiled' * compiled}"
        report.measure(title, 40 if compiled else 15, partial(profile_batch, config, batch, compiled, sizes))
    report.measure(f"training, micro-batch {middle}", 15, partial(profile_step, middle, False, sizes))
    for size in sizes.compiled[-1:]:
        report.measure(f"training, micro-batch {size}, compiled", 40, partial(profile_step, size, True, sizes))


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
    wanted = DeviceType.CPU if device == "cpu" else DeviceType.CUDA
    # The profiler also records a span around the kernels of compiled code.
    marks = ("##", "Torch-Compiled Region")
    events = [e for e in found.key_averages() if e.device_type == wanted and not e.key.startswith(marks)]
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
