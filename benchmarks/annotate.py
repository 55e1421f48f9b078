"""Annotation of many small photos: is memory constant, and is the result right after several kills?

    python benchmarks/annotate.py [--model mini] [--photos 500 2000] [--kills 5]
    python benchmarks/annotate.py --doubt SET [--model mini]

The photos, 64x48, are crops of scikit-image's samples. While the command is killed and restarted, the files in its
folder are read over and over; at the end they must be the same as without kills, with each photo processed once.

SET is a folder of photos with masks, as for segclip evaluate; all its class names are the labels. How well does a
segment's doubt predict how much of it is wrong?
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
KILL_AFTER = 40  # at most so many photos after a start


def main(model: str = "mini", photos: tuple[int, int] = (500, 2000), kills: int = 5, doubt: Path | None = None) -> None:
    if doubt:
        measure_doubt(doubt, model)
        return
    table = Table("what", "value", title=f"segclip annotate, {model}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for count in photos:
            source = make_photos(root / f"photos-{count}", count)
            seconds, memory = run_python(command(source, root / f"out-{count}", model))
            value = f"{seconds:.0f} s, {memory / 2**20:.0f} MiB at the peak"
            table.add_row(f"{count:,} photos", value)
            print(f"{count:,} photos: {value}", flush=True)
        source = root / f"photos-{photos[0]}"
        seen = kill_and_resume(source, root / "killed", model, kills)
        same = contents(root / "killed") == contents(root / f"out-{photos[0]}")
        table.add_row(f"{photos[0]:,} photos, killed {kills} times", f"{seen:,} files read meanwhile, all valid")
        table.add_row("same files as without kills", "yes" if same else "NO")
        table.add_row("photos processed more than once", str(repeated(root / "killed")))
    Console().print(table)


def measure_doubt(root: Path, model: str) -> None:
    """Print the rank correlation of doubt and the share of wrong pixels, over the segments of all photos."""
    benchmark = open_benchmark("folder", root, "val")
    labels = benchmark.names[1:] if benchmark.background else benchmark.names
    segmenter, rows = Segmenter(model), []
    for pair in track(benchmark.pairs):
        photo, truth = benchmark.load(pair)
        result = segmenter.segment(photo, labels, background="auto" if benchmark.background else None)
        result = replace(result, labels=clean_labels(result.labels, Drawing().clean * result.labels.size))
        indices = result.labels - (not benchmark.background)
        for one in result.found():
            known = (result.labels == one.index) & (truth != IGNORED)
            if one.index and known.any():
                rows.append((1 - one.score, (truth != indices)[known].mean()))
    doubts, wrong = np.array(rows).T
    most = np.argsort(-doubts)[: len(rows) // 4]
    order = rankdata(np.stack([doubts, wrong]), axis=1)
    print(f"{len(benchmark.pairs)} photos, {len(rows)} segments; wrong pixels of a segment: {wrong.mean():.1%}")
    print(f"in the most doubtful quarter {wrong[most].mean():.1%}, in the others {np.delete(wrong, most).mean():.1%}")
    print(f"Spearman's correlation of doubt and wrong pixels: {np.corrcoef(order)[0, 1]:.2f}")


def command(source: Path, out: Path, model: str) -> list[str]:
    return ["-m", "segclip", "annotate", str(source), "--model", model, "--labels", *LABELS, "--out", str(out)]


def kill_and_resume(source: Path, out: Path, model: str, kills: int) -> int:
    """Start, kill and restart the command, then let it finish; the number of times a file was read, always valid."""
    generator, checked = random.Random(0), 0
    for attempt in range(kills + 1):
        process = subprocess.Popen([sys.executable, *command(source, out, model)], stderr=subprocess.DEVNULL)
        before = len(list(out.glob("masks/*.png")))
        wanted = before + generator.randrange(1, KILL_AFTER) if attempt < kills else sys.maxsize
        while process.poll() is None:
            if len(list(out.glob("masks/*.png"))) >= wanted:
                time.sleep(generator.random() / 10)
                process.kill()
                process.wait()
            checked += check(out)
            time.sleep(0.05)
        if attempt == kills and process.returncode:
            raise RuntimeError(f"the last start ended with exit code {process.returncode}")
    return checked


def check(out: Path) -> int:
    """Read the files that cover all photos, and some of the others; the number read."""
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
