"""Seconds and memory of a process, for the benchmarks."""

import subprocess
import sys

# Between us and the process that is measured stands a small one: Linux counts what its parent held as its own peak.
LAUNCH = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run_python(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a Python process of its own."""
    command = [sys.executable, "-c", LAUNCH, sys.executable, *arguments]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), int(memory) * (1 if sys.platform == "darwin" else 1024)
