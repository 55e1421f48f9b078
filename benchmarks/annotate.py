"""Annotating many small photos: is memory flat, and does a run that is killed again and again end well?

    python benchmarks/annotate.py [--model mini] [--photos 500 2000] [--kills 5]
    python benchmarks/annotate.py --doubt SET [--model mini]

The photos, 64x48, are cut out of those that scikit-image carries. While the run that is killed goes on, every file in
its folder is read over and over; at the end, it must be what an undisturbed run wrote, each photo done once.

SET is a folder of photos with masks, as segclip evaluate takes it; all its names are the labels. How well does the
doubt of a segment tell how much of it is wrong?
"""

import json
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import skimage.data
import tyro
from measuring import run_python
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import rankdata

from segclip.annotate.annotator import Drawing
from segclip.annotate.polygons import clean_labels
from segclip.evaluate.datasets import open_benchmark
from segclip.evaluate.datasets.benchmark import IGNORED
from segclip.segment.segmenter import Segmenter

LABELS = ("cat", "cup", "table", "rocket", "sky")
WIDTH, HEIGHT = 64, 48
KILL_AFTER = 40  # photos, at most, since the run was started


def main(model: str = "mini", photos: tuple[int, int] = (500, 2000), kills: int = 5, doubt: Path | None = None) -> None:
    if doubt:
        measure_doubt(doubt, model)
        return
    table = Table("what", "value", title=f"segclip annotate, {model}")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        for count in photos:
            source = make_photos(made / f"photos-{count}", count)
            seconds, memory = run_python(command(source, made / f"out-{count}", model))
            value = f"{seconds:.0f} s, {memory / 2**20:.0f} MiB at the peak"
            table.add_row(f"{count:,} photos", value)
            print(f"{count:,} photos: {value}", flush=True)
        source = made / f"photos-{photos[0]}"
        seen = kill_and_resume(source, made / "killed", model, kills)
        same = contents(made / "killed") == contents(made / f"out-{photos[0]}")
        table.add_row(
            f"{photos[0]:,} photos, killed {kills} times", f"{seen:,} files read meanwhile, all of them valid"
        )
        table.add_row("files as those of the undisturbed run", "yes" if same else "NO")
        table.add_row("photos done more than once", str(repeated(made / "killed")))
    Console().print(table)


def measure_doubt(root: Path, model: str) -> None:
    """Print the rank correlation of doubt and the share of wrong pixels, over the segments of all photos."""
    found = open_benchmark("folder", root, "val")
    labels = found.names[1:] if found.background else found.names
    segmenter, rows = Segmenter(model), []
    for pair in track(found.pairs):
        photo, truth = found.load(pair)
        result = segmenter.segment(photo, labels, background="auto" if found.background else None)
        result = replace(result, labels=clean_labels(result.labels, Drawing().clean * result.labels.size))
        indices = result.labels - (not found.background)
        for one in result.found():
            known = (result.labels == one.index) & (truth != IGNORED)
            if one.index and known.any():
                rows.append((1 - one.score, (truth != indices)[known].mean()))
    doubts, wrong = np.array(rows).T
    most = np.argsort(-doubts)[: len(rows) // 4]
    order = rankdata(np.stack([doubts, wrong]), axis=1)
    print(f"{len(found.pairs)} photos, {len(rows)} segments; wrong pixels of a segment: {wrong.mean():.1%}")
    print(f"in the most doubtful quarter {wrong[most].mean():.1%}, in the others {np.delete(wrong, most).mean():.1%}")
    print(f"Spearman's correlation of doubt and wrong pixels: {np.corrcoef(order)[0, 1]:.2f}")


def command(source: Path, out: Path, model: str) -> list[str]:
    return ["-m", "segclip", "annotate", str(source), "--model", model, "--labels", *LABELS, "--out", str(out)]


def kill_and_resume(source: Path, out: Path, model: str, kills: int) -> int:
    """Start, kill and start again, then let it end; gives how often a file was read, all of them valid."""
    generator, seen = random.Random(0), 0
    for attempt in range(kills + 1):
        process = subprocess.Popen([sys.executable, *command(source, out, model)], stderr=subprocess.DEVNULL)
        before = len(list(out.glob("masks/*.png")))
        wanted = before + generator.randrange(1, KILL_AFTER) if attempt < kills else sys.maxsize
        while process.poll() is None:
            if len(list(out.glob("masks/*.png"))) >= wanted:
                time.sleep(generator.random() / 10)
                process.kill()
                process.wait()
            seen += check(out)
            time.sleep(0.05)
        if attempt == kills and process.returncode:
            raise RuntimeError(f"the last run ended with {process.returncode}")
    return seen


def check(out: Path) -> int:
    """Read the files that are there, all that are about many photos and some of the others."""
    masks = random.sample(found := sorted(out.glob("*/*.png")), min(20, len(found)))
    whole = [path for path in out.glob("*.*") if path.suffix in (".json", ".xml")]
    for path in (*masks, *whole):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            ElementTree.parse(path)
    return len(masks) + len(whole)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("[!.]*") if path.is_file()}


def repeated(out: Path) -> int:
    lines = (out / ".progress.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return sum(count > 1 for count in Counter(json.loads(line)["photo"] for line in lines).values())


def make_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    photos = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    for number in range(count):
        photo = photos[number % 3]
        top, left = (int(generator.integers(n - m)) for n, m in zip(photo.shape, (HEIGHT, WIDTH), strict=False))
        Image.fromarray(photo[top : top + HEIGHT, left : left + WIDTH]).save(folder / f"{number:04d}.png")
    return folder


if __name__ == "__main__":
    tyro.cli(main)
