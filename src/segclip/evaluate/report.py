"""The page of an evaluation: classes, what they are taken for, and the photos that went best and worst."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from segclip.evaluate.evaluator import Evaluator
from segclip.evaluate.masks import IGNORED, Mask
from segclip.utils.files import atomic
from segclip.visualize import draw_overlay

SIDE = 420  # of a picture, in pixels
CONFUSED, TAKEN = 10, 3  # classes listed with what they are taken for, and how many of these

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1d1d1f }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem } .what { color: #555 }
dl { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem } dt { color: #555 } dd { margin: 0; font-size: 1.6rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } .bar { background: #0072b2; height: .7rem }
td.b { width: 8rem } .classes { columns: 20rem }
figure { margin: 1.5rem 0 } figure div { display: flex; flex-wrap: wrap; gap: .5rem }
figure img { max-width: 32%; min-width: 14rem; height: auto; align-self: start }
"""


def write_report(
    folder: Path, result: dict[str, Any], evaluator: Evaluator, best: Sequence[str], worst: Sequence[str]
) -> Path:
    """Write `folder`/index.html, one file with its pictures inside.

    Args:
        folder: made if missing.
        result: the record of the evaluation.
        evaluator: what it was made with; the photos shown are labelled again.
        best, worst: their keys.
    """
    low, high = result["miou_interval"]
    figures = {
        "mIoU": f"{result['miou']:.3f}",
        "95% interval": f"{low:.3f} to {high:.3f}",
        "pixel accuracy": f"{result['pixel_accuracy']:.3f}",
        "mean class accuracy": f"{result['mean_class_accuracy']:.3f}",
        "best name for each region": f"{result['region_miou']:.3f}",
    }
    changed = f", with {', '.join(result['changed'])}" if result["changed"] else ""
    title = " ".join(filter(None, (result["set"], result["split"])))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>",
        f"<p class=what>{result['photos'] - len(result['left_out'])} photos, model {escape(result['model'])}, protocol "
        f"{escape(result['protocol'] + changed)}, names {escape(result['names'])}</p>",
        "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items()) + "</dl>",
        "<h2>IoU of each class</h2>" + _class_table(result["per_class"]),
        "<h2>The worst classes, and what they are taken for</h2>",
        _confusion_table(np.array(result["confusion"]), result["per_class"]),
        "<h2>Photos that went best</h2><p class=what>Photo, truth, found.</p>",
        *_pictures(evaluator, best),
        "<h2>Photos that went worst</h2>",
        *_pictures(evaluator, worst),
        f"<h2>To repeat it</h2><p>Weights sha256 {result['weights_sha256']}; {escape(str(result['versions']))}; "
        f"settings {escape(str(result['settings']))}</p></html>",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    with atomic(page) as file:
        file.write_text("\n".join(parts) + "\n", "utf-8")
    return page


def _class_table(per_class: dict[str, float | None]) -> str:
    known = sorted(((iou, name) for name, iou in per_class.items() if iou is not None), reverse=True)
    rows = "".join(
        f"<tr><td>{escape(name)}<td class=n>{iou:.3f}<td class=b><div class=bar style='width:{iou:.1%}'></div>"
        for iou, name in known
    )
    missing = [escape(name) for name, iou in per_class.items() if iou is None]
    note = f"<p class=what>In no photo, and never found: {', '.join(missing)}.</p>" if missing else ""
    return f"<div class=classes><table>{rows}</table></div>{note}"


def _confusion_table(confusion: ndarray, per_class: dict[str, float | None]) -> str:
    names = list(per_class)
    there = [i for i in np.argsort([iou or 0 for iou in per_class.values()]) if confusion[i].sum()]
    rows = []
    for i in there[:CONFUSED]:
        shares = confusion[i] / confusion[i].sum()
        taken = [
            f"{escape(names[j])} {shares[j]:.0%}" for j in np.argsort(-shares)[: TAKEN + 1] if j != i and shares[j]
        ]
        rows.append(f"<tr><td>{escape(names[i])}<td class=n>{shares[i]:.0%}<td>{', '.join(taken[:TAKEN])}")
    return f"<table><tr><th>class<th>found<th>the rest is mostly taken for{''.join(rows)}</table>"


def _pictures(evaluator: Evaluator, keys: Sequence[str]) -> list[str]:
    pairs = {pair.key: pair for pair in evaluator.benchmark.pairs}
    figures = []
    for block in evaluator.encode([[pairs[key]] for key in keys]):
        for key, encoded, truth in block:
            pictures = [_small(Image.fromarray(encoded.photo))]
            pictures += [
                _draw(encoded.photo, labels, evaluator.benchmark.names) for labels in (truth, evaluator.label(encoded))
            ]
            images = "".join(
                f"<img alt='{what}' src='{_data(p)}'>"
                for what, p in zip(("photo", "truth", "found"), pictures, strict=True)
            )
            figures.append(f"<figure><figcaption>{escape(key)}</figcaption><div>{images}</div></figure>")
    return figures


def _draw(photo: UInt8[ndarray, "H W 3"], classes: Mask, names: Sequence[str]) -> Image.Image:
    """Black is the background, and what nobody labelled. Scaled down first, or the names on it could not be read."""
    shift = 0 if names[0] == "background" else 1
    labels = np.where(classes == IGNORED, 0, classes.astype(np.int32) + shift)
    areas = np.bincount(labels.ravel()) / labels.size
    shown = ["nothing", *names[1 - shift :]]
    found = [(int(i), shown[i], float(areas[i])) for i in np.argsort(-areas) if areas[i]]
    small = _small(Image.fromarray(photo))
    labels = Image.fromarray(labels).resize(small.size, Image.Resampling.NEAREST)
    return draw_overlay(np.array(small), np.array(labels), found)


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((SIDE, SIDE))
    return image


def _data(image: Image.Image) -> str:
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
