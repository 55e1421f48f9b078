"""benchmarks/gpu.sh, which is meant for a GPU machine, runs on the CPU with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_every_step_finds_its_figures(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "run", str(tmp_path / "out"), "2000", "--tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")}
    assert steps.keys() == {"checks", "inference", "training", "profile"}
    for step, figures in steps.items():
        found = {name: one for name, one in figures.items() if isinstance(one, dict)}
        assert found and all(name in done.stdout for name in found)
        for name, one in found.items():
            assert not {"error", "skipped"} & one.keys(), (step, name, one)
            assert one.get("passed", True), (step, name, one)


def test_measurements_without_time_left_are_skipped(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from gpu_report import Report\n"
        "report = Report(Path(sys.argv[1]), time.time() + 30)\n"
        "report.measure('short', 1, lambda: {'figure': 1}); report.measure('long', 60, lambda: {'figure': 2})\n"
        "report.measure('wrong', 1, lambda: {'figure': 1 / 0})\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "step.json"], cwd=ROOT / "benchmarks", check=True)
    figures = json.loads((tmp_path / "step.json").read_text())
    assert figures["short"]["figure"] == 1 and "about 60 s needed" in figures["long"]["skipped"]
    assert figures["wrong"]["error"].startswith("ZeroDivisionError")


def test_minis_configuration_is_that_of_its_weights(tmp_path: Path) -> None:
    program = (
        "from gpu_report import MINI, MINI_FILE; from segclip.train.resolve import read_start\n"
        "assert read_start(str(MINI_FILE)).model == MINI"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT / "benchmarks", check=True)
