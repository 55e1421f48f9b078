"""Hostile inputs: damaged photos, weights, sources and masks.

    python benchmarks/hostile.py [--kinds KIND ...] [--seed 0] [--photos 20000 ...] [--json FILE]

Every input is made from a valid file, which the script makes, and a seed; it is tried in a process that is used again
(KINDs in this order; default: all):
  photos   a damaged photo is read, or refused
  folders  20 damaged photos beside four good ones through segment, annotate, prepare: each comes out or is named
  weights  a damaged or hostile file of weights is read, finite, or refused
  sources  captions, tars, datasets, shards with hostile names and values, through prepare
  masks    damaged masks, classes and annotations, through the sets' readers and evaluate
  kills    prepare, annotate, evaluate and train, killed five times each, then let end: the bytes of the undisturbed
  runs     a run with a damaged file is resumed: it ends as it would have, or says which file

A fault is: an exception that is none of the package's own (ValueError, OSError); a message that is empty, of several
lines or over 400 letters; a process that dies, hangs or takes too much memory; a file changed outside the folder; a
process or a connection started; an item lost without a word; NaN in a result.
Exit code: 1 where there is a fault. `--only N` with one kind tries its input N alone, here, with its traceback.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing import connection, get_context
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # helpers: other people's formats of weights

from attacks.kills import KILLS, Commands
from attacks.process import Attack, Fault, serve
from rich.console import Console
from rich.table import Table

START = 300.0  # seconds that a process may take to begin
SHOWN = 20  # faults of a kind that are printed

# Of each kind: where its attack is, and how many inputs by default.
KINDS = {
    "photos": ("photos", "Photos", 20000),
    "folders": ("photos", "Folders", 100),
    "weights": ("weights", "Weights", 5000),
    "sources": ("sources", "Sources", 500),
    "masks": ("masks", "Masks", 3000),
}
COMMANDS = {"kills": 100, "runs": 60}  # kinds that are commands of their own, one after the other


@dataclass
class Report:
    """What became of the inputs of a kind."""

    kind: str
    tried: int = 0
    taken: int = 0
    faults: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


def make_attack(folder: Path, kind: str) -> Attack:
    """The attack of a kind, in the process that it runs in."""
    module, name, _ = KINDS[kind]
    return getattr(import_module(f"attacks.{module}"), name)(folder)


class Worker:
    """A process that tries inputs, and what it is at."""

    def __init__(self, kind: str, seed: int, folder: Path) -> None:
        self.arguments = (partial(make_attack, kind=kind), kind, seed, folder)
        self.number: int | None = None
        self.start()

    def start(self) -> None:
        """Begin, or begin anew after the process is gone."""
        make, kind, seed, folder = self.arguments
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        context = get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, kind, seed, folder), daemon=True)
        self.process.start()
        theirs.close()
        if not self.link.poll(START):
            self.stop()
            raise RuntimeError(f"{kind}: no process could be started in {START:.0f} s")
        self.seconds: float = self.link.recv()

    def give(self, number: int | None) -> None:
        """An input to try; None: no further one."""
        self.number, self.since = number, time.monotonic()
        self.link.send(number)

    def result(self) -> tuple[bool, str] | None:
        """Whether the input was taken, and what was wrong; None: it is still at it."""
        try:
            if self.link.poll():
                return self.link.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.start()
            return False, f"the process died (exit code {code})"
        if time.monotonic() - self.since > self.seconds:
            self.stop()
            self.start()
            return False, f"more than {self.seconds:.0f} s"
        return None

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def try_all(kind: str, count: int, seed: int, processes: int) -> Report:
    """Try so many inputs of a kind."""
    report, numbers = Report(kind), iter(range(count))
    start = said = time.monotonic()
    with TemporaryDirectory(prefix="hostile-") as folder:
        workers = [Worker(kind, seed, Path(folder) / str(i)) for i in range(min(processes, max(count, 1)))]
        busy = []
        for worker in workers:
            if (number := next(numbers, None)) is not None:
                worker.give(number)
                busy.append(worker)
        while busy:
            connection.wait([worker.link for worker in busy], timeout=1.0)
            for worker in list(busy):
                if (found := worker.result()) is None:
                    continue
                taken, fault = found
                report.tried += 1
                report.taken += taken
                if fault:
                    assert worker.number is not None
                    report.faults[worker.number] = fault
                    print(f"{kind} {worker.number}: {fault}", file=sys.stderr, flush=True)
                if (number := next(numbers, None)) is None:
                    busy.remove(worker)
                else:
                    worker.give(number)
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"{kind}: {report.tried} of {count}, {len(report.faults)} faults", file=sys.stderr, flush=True)
        for worker in workers:
            worker.give(None)
            worker.process.join(30)
            worker.stop()
    report.seconds = time.monotonic() - start
    return report


def try_commands(kind: str, count: int, seed: int) -> Report:
    """Kill commands so many times, or resume so many damaged runs."""
    report, start = Report(kind), time.monotonic()
    with TemporaryDirectory(prefix="hostile-") as folder:
        commands = Commands(Path(folder))
        names = list(commands.jobs)
        for number in range(-(-count // KILLS) if kind == "kills" else count):
            generator = random.Random(f"{seed} {kind} {number}")
            try:
                if kind == "kills":
                    report.tried += KILLS
                    commands.kill(names[number % len(names)], generator, number)
                    report.taken += KILLS
                else:
                    report.tried += 1
                    report.taken += commands.damage(generator, number)
            except (Fault, OSError, subprocess.TimeoutExpired) as fault:
                report.faults[number] = str(fault)
                print(f"{kind} {number}: {fault}", file=sys.stderr, flush=True)
    report.seconds = time.monotonic() - start
    return report


def try_one(kind: str, number: int, seed: int) -> None:
    """Try one input in this process; what it raises is shown whole."""
    with TemporaryDirectory(prefix="hostile-") as folder:
        os.environ["SEGCLIP_DEBUG"] = "1"
        taken = make_attack(Path(folder), kind).attempt(random.Random(f"{seed} {kind} {number}"), number)
        print("taken" if taken else "refused")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *COMMANDS], default=[*KINDS, *COMMANDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--only", type=int, help="the number of the one input to try")
    for kind, count in {**{kind: count for kind, (_, _, count) in KINDS.items()}, **COMMANDS}.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"inputs (default {count})")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Try all, and show what was found."""
    asked = parse(arguments)
    if asked.only is not None:
        try_one(asked.kinds[0], asked.only, asked.seed)
        return 0
    table = Table("kind", "tried", "taken", "refused", "faults", "seconds", title=f"seed {asked.seed}")
    reports = []
    for kind in asked.kinds:
        count = getattr(asked, kind)
        if kind in COMMANDS:
            report = try_commands(kind, count, asked.seed)
        else:
            report = try_all(kind, count, asked.seed, asked.processes)
        reports.append(report)
        refused = report.tried - report.taken - len(report.faults)
        row = (report.tried, report.taken, refused, len(report.faults), round(report.seconds))
        table.add_row(kind, *(f"{value:,}" for value in row))
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps({"seed": asked.seed, "kinds": [asdict(one) for one in reports]}, indent=1))
    for report in reports:
        for fault, times in Counter(report.faults.values()).most_common(SHOWN):
            print(f"{report.kind}: {times} x {fault}")
    return int(any(report.faults for report in reports))


if __name__ == "__main__":
    sys.exit(main())
