"""The page of an evaluation: classes, what they are taken for, and the photos that went best and worst."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader
from numpy import ndarray
from PIL import Image

from segclip.evaluate.datasets.benchmark import IGNORED, Mask
from segclip.evaluate.evaluator import Evaluator
from segclip.utils.files import atomic
from segclip.visualize import draw_overlay

SIDE = 420  # of a picture, in pixels
CONFUSED, OTHERS = 10, 3  # classes listed with what they are taken for, and how many of these
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@dataclass(frozen=True)
class _Photo:
    """A photo on the page: its JPEGs in base 64, by what they show."""

    key: str
    pictures: dict[str, str]


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
    per_class: dict[str, float | None] = result["per_class"]
    known = [(iou, name) for name, iou in per_class.items() if iou is not None]
    text = TEMPLATES.get_template("report.html").render(
        title=" ".join(filter(None, (result["set"], result["split"]))),
        result=result,
        figures={
            "mIoU": f"{result['miou']:.3f}",
            "95% interval": f"{low:.3f} to {high:.3f}",
            "pixel accuracy": f"{result['pixel_accuracy']:.3f}",
            "mean class accuracy": f"{result['mean_class_accuracy']:.3f}",
            "best name for each region": f"{result['region_miou']:.3f}",
        },
        known=[(name, iou) for iou, name in sorted(known, reverse=True)],
        missing=[name for name, iou in per_class.items() if iou is None],
        confused=_confused(np.array(result["confusion"]), per_class),
        best=_draw_photos(evaluator, best),
        worst=_draw_photos(evaluator, worst),
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    with atomic(page) as temporary:
        temporary.write_text(text, "utf-8")
    return page


def _confused(confusion: ndarray, per_class: dict[str, float | None]) -> list[tuple[str, str, list[str]]]:
    """The worst classes: name, share found, and what the rest is mostly taken for."""
    names = list(per_class)
    present = [i for i in np.argsort([iou or 0 for iou in per_class.values()]) if confusion[i].sum()]
    rows = []
    for i in present[:CONFUSED]:
        shares = confusion[i] / confusion[i].sum()
        others = [f"{names[j]} {shares[j]:.0%}" for j in np.argsort(-shares)[: OTHERS + 1] if j != i and shares[j]]
        rows.append((names[i], f"{shares[i]:.0%}", others[:OTHERS]))
    return rows


def _draw_photos(evaluator: Evaluator, keys: Sequence[str]) -> list[_Photo]:
    pairs, names = {pair.key: pair for pair in evaluator.benchmark.pairs}, evaluator.benchmark.names
    photos = []
    for batch in evaluator.encode([[pairs[key]] for key in keys]):
        for key, encoded, truth in batch:
            pictures = {
                "photo": _small(Image.fromarray(encoded.photo)),
                "truth": _draw(encoded.photo, truth, names),
                "found": _draw(encoded.photo, evaluator.label(encoded), names),
            }
            photos.append(_Photo(key, {what: _encode_jpeg(picture) for what, picture in pictures.items()}))
    return photos


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


def _encode_jpeg(image: Image.Image) -> str:
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=85)
        return base64.b64encode(file.getvalue()).decode()
