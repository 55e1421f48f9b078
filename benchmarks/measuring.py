"""Time and memory of a process, time and matrix rate of a device, for the benchmarks."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

MATRIX = 8192  # side of the matrices whose product measures a GPU's matrix rate
WARM_UP = 3

# A small process starts the measured one, because Linux counts the memory of a process's parent towards its own peak.
LAUNCH = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run_python(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a separate Python process."""
    command = [sys.executable, "-c", LAUNCH, sys.executable, *arguments]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(memory) * (1 if sys.platform == "darwin" else 1024)


def matrix_rate(device: str = "cuda", side: int = MATRIX) -> float:
    """Floating-point operations per second of a large bfloat16 product on this device."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device, 50)


def median_seconds(run: Callable[[], object], device: str, rounds: int, warm_up: int = WARM_UP) -> float:
    """Median time in seconds on a device; the warm-up rounds are not counted."""
    return statistics.median([device_seconds(run, device) for _ in range(warm_up + rounds)][warm_up:])


def device_seconds(run: Callable[[], object], device: str) -> float:
    """Time in seconds on a device; on a GPU between two CUDA events."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def count_operations(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
