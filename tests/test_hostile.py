"""benchmarks/hostile.py: a few inputs of each kind, and what it takes for a fault."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def module(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.slow
def test_a_few_inputs_of_each_kind_have_no_fault(tmp_path: Path) -> None:
    counts = {"photos": 60, "folders": 3, "weights": 60, "sources": 24, "masks": 40}
    options = [part for kind, count in counts.items() for part in (f"--{kind}", str(count))]
    out = tmp_path / "found.json"
    assert module("hostile").main(["--kinds", *counts, *options, "--processes", "1", "--json", str(out)]) == 0
    found = {report["kind"]: report for report in json.loads(out.read_text())["kinds"]}
    assert {kind: report["tried"] for kind, report in found.items()} == counts
    assert all(not report["faults"] and report["taken"] for report in found.values())
    assert 0 < found["photos"]["taken"] < 60, "some are read, some refused"


def test_faults_are_seen(tmp_path: Path) -> None:
    process = module("attacks.process")
    with pytest.raises(KeyError):
        process.refusal(lambda: {}["x"])
    assert process.refusal(lambda: int("x")) == process.Refused("invalid literal for int() with base 10: 'x'")
    for message in ("", "x" * 401, "a\nb\nc", "a\x1b[2J"):
        with pytest.raises(process.Fault):
            process.check_message(message)
    process.check_message("photo.png: damaged " + "x" * 380)
    folder = tmp_path / "folder"
    folder.mkdir()
    watch = process.Watch(folder)
    watch.armed = True
    (folder / "in").write_text("")
    (folder / "in").rename(folder / "still in")
    assert not watch.seen
    (folder / "still in").rename(tmp_path / "out")
    (tmp_path / "there").write_text("")
    sys.audit("subprocess.Popen", "sh", [])
    watch.armed = False
    assert [seen.split(" (")[0] for seen in watch.seen] == [
        *("a file was changed outside the folder",) * 2, "a process was started",
    ]  # fmt: skip
