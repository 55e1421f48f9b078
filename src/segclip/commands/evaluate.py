"""`segclip evaluate`: a set of photos with masks -> mIoU and its record; resumed, and split over processes.

What each photo gave is kept as a line of NAME.photos.jsonl beside the record, so a broken run goes on, and memory does
not grow with the set.
"""

import json
import platform
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from segclip import __version__
from segclip.checkpoints.loading import locate
from segclip.checkpoints.sharded import weights_sha256
from segclip.commands.options import HeadName, ProtocolName
from segclip.commands.photos import check_writable
from segclip.commands.terminal import console, say
from segclip.evaluate.datasets import DATASETS, open_benchmark
from segclip.evaluate.datasets.benchmark import Benchmark, Pair
from segclip.evaluate.evaluator import Evaluator, calibrate, check_truth, cut_batches, words_of
from segclip.evaluate.metrics import Confusion, interval
from segclip.evaluate.records import Records
from segclip.evaluate.report import write_report
from segclip.segment.encoder import DType
from segclip.segment.presence import check_presence
from segclip.segment.protocols import find_protocol
from segclip.segment.protocols.settings import change_settings, settings_of
from segclip.segment.segmenter import Segmenter
from segclip.utils.failures import Failed
from segclip.utils.files import atomic
from segclip.utils.locks import only_one_writer
from segclip.utils.prefetch import prefetched
from segclip.utils.processes import Processes, join_processes, world_size

READERS = 4  # threads that see whether photos are still the same
SHOWN = 6  # photos in the report that went best, and that went worst
THRESHOLDS = tuple(i / 20 for i in range(1, 20))  # that a calibration tries

SETS = f"One of {', '.join(DATASETS)}; folder: images/, masks/ (index PNGs, 255 ignored) and classes.json."
Job = dict[str, Any]  # what is evaluated, as the result has it


def evaluate(
    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET", help=SETS)],
    /,
    root: Path,
    model: str = "mini",
    head: HeadName = None,
    protocol: ProtocolName = "open",
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE")] = (),
    split: Literal["val", "train"] | None = None,
    limit: int | None = None,
    names: Literal["own", "sclip"] = "own",
    presence: str = "auto",
    device: str = "auto",
    dtype: DType = "float32",
    file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    report: Path | None = None,
    calibrate: bool = False,
    skip_bad: bool = False,
) -> int:
    """Measure a model: mIoU on a benchmark, or on your own photos with masks.

    Prints the IoU of each class, the mIoU with its 95% interval over photos, pixel accuracy, and what the regions would
    reach with the best name for each. docs/evaluation.md has the sets' folders and the protocols. Many processes:
    torchrun -m segclip evaluate ...

    Args:
        root: Folder of the set, as its download unpacks.
        model: mini (embedded), vit-b16 (downloaded), a file of weights, or a Hugging Face hub id.
        head: Of a plain CLIP: see segclip segment.
        protocol: open: for people. paper: the evaluation of arXiv 2211.14813, with its threshold for the set.
            groupvit: the same rules at 448 pixels with overlapping windows. dense: the evaluation of dense heads over a
            plain CLIP, with NACLIP's settings for the set.
        changes: Fields of the protocol's settings, as in --set threshold=0.7 stride=112.
        split: val, or train; train for --calibrate.
        limit: So many photos, spread evenly over the set.
        names: own: the classes as the paper names them. sclip: several words a class, as SCLIP asks for them.
        presence: auto or none: see segclip segment.
        device: auto, cpu, cuda, mps ...
        dtype: Of the image tower's products: see segclip segment.
        file: File for the result with all that is needed to repeat it. NAME.photos.jsonl beside it keeps what each
            photo gave, so that the same command goes on with a broken run.
        report: Folder for a page: classes, confusions, the best and the worst photos.
        calibrate: Try background thresholds on the training split, and print the curve, instead of evaluating.
        skip_bad: Leave out photos and masks that cannot be read, and name them at the end.
    """
    if world_size() > 1 and (calibrate or file is None):
        raise ValueError("several processes: give --json FILE, beside which they share their counts, no --calibrate")
    if calibrate and split == "val" and dataset != "folder":
        raise ValueError("--calibrate on the split that is reported; leave --split out, which takes the training split")
    judged = check_presence(presence)
    _check_outputs(file, report)
    changed = change_settings(find_protocol(protocol).for_benchmark(dataset), changes)
    benchmark = open_benchmark(dataset, root, split or ("train" if calibrate else "val"))
    asked = {"root": str(root.resolve()), "of": len(benchmark.pairs), "model": model, "protocol": protocol}
    asked |= {"limit": limit, "changed": list(changes), "names": names, "presence": judged, "dtype": dtype}
    asked |= {} if head is None else {"head": head}  # results of before have none
    if limit is not None:
        benchmark = replace(benchmark, pairs=_spread(benchmark.pairs, limit))
    words, weights = words_of(benchmark, names), locate(model)
    with join_processes(device) as processes:
        segmenter = Segmenter(weights, changed, head=head, device=processes.device, dtype=dtype)
        evaluator = Evaluator(segmenter, benchmark, words, judged)
        job = _describe(evaluator, weights) | asked
        if calibrate:
            left_out = _calibrate(job, evaluator, file, skip_bad)
        else:
            left_out = _evaluate(job, evaluator, file, report, processes, skip_bad)
    for failed in left_out:
        say(f"left out: {failed.item}: {failed.reason}")
    return 1 if left_out else 0


def _check_outputs(file: Path | None, report: Path | None) -> None:
    """What is to be written can be, before any work is done."""
    if file is not None and file.is_dir():
        raise ValueError(f"{file}: is a folder; --json names the file of the result")
    for folder in (file and file.parent, report):
        if folder is not None:
            check_writable(folder)


def _describe(evaluator: Evaluator, weights: Path) -> Job:
    """What is evaluated, as far as the evaluator knows."""
    segmenter, benchmark = evaluator.segmenter, evaluator.benchmark
    job = {
        "set": benchmark.name,
        "split": benchmark.split,
        "photos": len(benchmark.pairs),
        "weights_sha256": weights_sha256(weights),
        "settings": settings_of(segmenter.protocol),
        "words": evaluator.words,
        "device": segmenter.encoder.device.type,
        "versions": {
            "segclip": __version__,
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in (torch, numpy, cv2)},
        },
    }
    return json.loads(json.dumps(job))


def _evaluate(
    job: Job, evaluator: Evaluator, file: Path | None, report: Path | None, processes: Processes, skip_bad: bool
) -> list[Failed]:
    """Measure, each process its share, and let the main one write and show the result; what was left out."""
    with tempfile.TemporaryDirectory() as spare, ExitStack() as held:
        file = file or Path(spare) / "result.json"
        if processes.is_main:
            held.enter_context(only_one_writer(file))
        processes.wait()
        same = {name: value for name, value in job.items() if name not in ("photos", "of")}  # a set may grow
        records = Records(file, same, len(evaluator.benchmark.names), processes.rank)
        left = _start(evaluator, records, processes)
        _count(evaluator, records, left, processes, skip_bad)
        processes.wait()
        if not processes.is_main:
            return []
        records.merge(processes.world)
        result = _summary(job, records, evaluator.benchmark)
        _write_json(file, result)
        _show(result)
        if report is not None:
            page = write_report(report, result, evaluator, *records.extremes(SHOWN))
            say(f"wrote {page}")
        return list(records.failed())


def _start(evaluator: Evaluator, records: Records, processes: Processes) -> list[Sequence[Pair]]:
    """Keep what an earlier run counted and is still so; the batches of this process's share that are left.

    A batch of which a photo is missing, or is another than it was, is counted whole.
    """
    benchmark, known = evaluator.benchmark, records.counted()
    batches = cut_batches(benchmark.pairs)[processes.rank :: processes.world]
    complete = [batch for batch in batches if all(pair.key in known for pair in batch)]

    def is_same(batch: Sequence[Pair]) -> bool:
        return all(known[pair.key].stamp == benchmark.stamp(pair) for pair in batch)

    same: set[str] = set()
    with _bar(processes.is_main and bool(complete)) as bar:
        task = bar.add_task("is it still the same?", total=sum(map(len, complete)))
        for batch, unchanged in zip(complete, prefetched(complete, is_same, threads=READERS), strict=True):
            same.update(pair.key for pair in batch if unchanged)
            bar.update(task, advance=len(batch))
    processes.wait()  # until all have read what an earlier run left
    records.start(known[key] for key in same)
    return [batch for batch in batches if batch[0].key not in same]


def _count(
    evaluator: Evaluator, records: Records, left: Sequence[Sequence[Pair]], processes: Processes, skip_bad: bool
) -> None:
    """Count batches, each of which is written down as soon as it is done."""
    failed: list[Failed] = []
    running = Confusion(len(evaluator.benchmark.names))
    with _bar(processes.is_main) as bar:
        task = bar.add_task("", total=sum(map(len, left)))
        encoded = evaluator.encode(left, failed if skip_bad else None)
        for batch, counts in zip(
            left, prefetched(encoded, lambda photos: [evaluator.count(*one) for one in photos]), strict=True
        ):
            records.add(counts)
            for photo in counts:
                running.add_counts(photo.found)
            bar.update(task, advance=len(batch), description=f"mIoU {running.miou():.3f}")
    records.add_failed(failed)


def _summary(job: Job, records: Records, benchmark: Benchmark) -> dict[str, Any]:
    classes = len(benchmark.names)
    found, regions = Confusion(classes), Confusion(classes)
    for photo in records.photos():
        found.add_counts(photo.found)
        regions.add_counts(photo.regions)
    left_out = {one.item: one.reason for one in records.failed()}
    if len(left_out) == len(benchmark.pairs):
        raise ValueError(f"none of the photos and masks can be read, such as {' '.join(left_out.popitem())}")
    check_truth(found, benchmark)
    return {
        "miou": found.miou(),
        "miou_interval": interval((photo.found for photo in records.photos()), classes),
        "pixel_accuracy": found.pixel_accuracy(),
        "mean_class_accuracy": found.mean_class_accuracy(),
        "region_miou": regions.miou(),
        "per_class": dict(zip(benchmark.names, found.iou(), strict=True)),
        "left_out": left_out,
        **job,
        "confusion": found.pixels.tolist(),
    }


def _calibrate(job: Job, evaluator: Evaluator, file: Path | None, skip_bad: bool) -> list[Failed]:
    """Try background thresholds on photos that are not reported, and print the curve; what was left out."""
    if not evaluator.threshold:
        raise ValueError(
            "--calibrate: nothing is found by a threshold here: no background, or one with words of its own"
        )
    failed: list[Failed] = []
    batches = cut_batches(evaluator.benchmark.pairs)
    counts: list[Confusion] = []
    with _bar(True) as bar:
        task = bar.add_task("calibrating", total=job["photos"])
        for photos, counts in calibrate(evaluator, batches, THRESHOLDS, failed if skip_bad else None):
            bar.update(task, completed=photos, description=f"mIoU {max(own.miou() for own in counts):.3f}")
    check_truth(counts[0], evaluator.benchmark)
    curve = {threshold: own.miou() for threshold, own in zip(THRESHOLDS, counts, strict=True)}
    best = max(curve, key=lambda threshold: curve[threshold])
    table = Table("threshold", "mIoU", "")
    for threshold, miou in curve.items():
        table.add_row(f"{threshold:.2f}", f"{miou:.4f}", "#" * round(40 * miou / max(curve[best], 1e-9)))
    output = Console()
    output.print(_headline(job), markup=False, highlight=False, soft_wrap=True)
    output.print(table)
    output.print(
        f"best: --set threshold={best:g}; chosen on {job['set']} {job['split'] or job['root']}", soft_wrap=True
    )
    if file is not None:
        left_out = {one.item: one.reason for one in failed}
        _write_json(file, job | {"calibration": list(curve.items()), "best_threshold": best, "left_out": left_out})
    return failed


def _show(result: dict[str, Any]) -> None:
    low, high = result["miou_interval"]
    table = Table("class", "IoU")
    for name, iou in result["per_class"].items():
        table.add_row(name, "-" if iou is None else f"{iou:.3f}")
    output = Console()
    output.print(_headline(result), markup=False, highlight=False, soft_wrap=True)
    output.print(table)
    output.print(
        f"mIoU {result['miou']:.4f} (95% interval over photos: {low:.4f} to {high:.4f}), "
        f"pixel accuracy {result['pixel_accuracy']:.4f}, mean class accuracy {result['mean_class_accuracy']:.4f}; "
        f"with the best name for each region, mIoU {result['region_miou']:.4f}",
        soft_wrap=True,
    )


def _headline(job: Job) -> str:
    """What a figure belongs to: it stands beside every one."""
    photos = f"{job['photos']} photos" + (f" of {job['of']}" if job["of"] != job["photos"] else "")
    changed = f" with {', '.join(job['changed'])}" if job["changed"] else ""
    threshold = job["settings"].get("threshold")
    threshold = "" if threshold is None else f", threshold {threshold}"
    looked_for = "" if job["presence"] else ", presence none"
    head = f" with head {job['head']}" if "head" in job else ""
    split = f" {job['split']}" if job["split"] else ""
    return (
        f"{job['set']}{split}, {photos}; {job['model']}{head}; protocol {job['protocol']}{changed}{threshold}"
        f"{looked_for}; names {job['names']}"
    )


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """So many of them, spread evenly."""
    if count < 1:
        raise ValueError(f"limit {count}; give at least 1, or leave the option out for all photos")
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def _write_json(file: Path, value: dict[str, Any]) -> None:
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _bar(shown: bool) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not shown, transient=True)
