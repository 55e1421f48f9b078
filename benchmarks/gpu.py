"""One step of gpu.sh: python benchmarks/gpu.py STEP OUT [--until TIME] [--tiny]

Steps, each of which writes OUT/STEP.json after every measurement:
  checks     results equal to the CPU's: golden arrays, label maps, a training step; resuming; two processes
  inference  windows/s with label maps, compiled and not; a folder of photos end to end
  training   images/s of the paper's recipe, compiled and not
  profile    the kernels that take the most time in inference and training
  table      prints the figures of the others in short
"""

import argparse
import json
import os
import time
from pathlib import Path

from gpu_checks import check
from gpu_inference import infer
from gpu_report import FULL, TINY, Report, short
from gpu_training import learn, look

STEPS = {"checks": check, "inference": infer, "training": learn, "profile": look}


def main() -> None:
    parser = argparse.ArgumentParser(description="One step of gpu.sh.")
    parser.add_argument("step", choices=[*STEPS, "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--until", type=float, default=time.time() + 600, help="Unix time at which the step must be done"
    )
    parser.add_argument("--tiny", action="store_true", help="on the CPU with tiny sizes, to test the script")
    options = parser.parse_args()
    if options.step == "table":
        print_table(options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    only = [name.strip() for name in os.environ.get("ONLY", "").split(";") if name.strip()]
    report = Report(options.out / f"{options.step}.json", options.until, only)
    STEPS[options.step](report, TINY if options.tiny else FULL)


def print_table(out: Path) -> None:
    for step in STEPS:
        file = out / f"{step}.json"
        figures = json.loads(file.read_text("utf-8")) if file.exists() else {"": {"skipped": "not begun"}}
        for name, found in figures.items():
            if isinstance(found, dict):
                print(f"{step:10}{name:45}{short(found)[:400]}")


if __name__ == "__main__":
    main()
