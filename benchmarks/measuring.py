"""Time and memory of a process, time and matrix rate of a GPU, for the benchmarks."""

import statistics
import subprocess
import sys
from collections.abc import Callable

import torch

MATRIX = 8192  # side of the matrices whose product measures a GPU's matrix rate

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


def matrix_rate() -> float:
    """Floating-point operations per second of a large bfloat16 product on this GPU."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    cuda_seconds(lambda: a @ b)
    return 2 * MATRIX**3 / statistics.median(cuda_seconds(lambda: a @ b) for _ in range(50))


def cuda_seconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
