"""The result of segmenting a photo: a label per pixel, to show and to save.

Axes: H W pixels, K labels.
"""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from PIL import Image

from segclip.data.own_png import save_own_png
from segclip.segment import coco
from segclip.segment.background import Background
from segclip.text.labels import BACKGROUND
from segclip.utils.files import atomic
from segclip.utils.optional import require
from segclip.visualize import draw_overlay, palette

SHOWN = 8  # labels in a result's repr, of those found and of those not found
DIGITS = 4  # of a presence in the JSON: more would differ from machine to machine
PALETTE_ENTRIES = 256  # of a palette PNG; with more labels the mask is a 16-bit PNG


@dataclass(frozen=True)
class Found:
    """One label that was found, or the background (index 0).

    Attributes:
        label: its name.
        index: its value in the label map and the mask.
        share: share of the photo's area, 0-1.
        score: mean score of its pixels, 0-1.
        box: left, top, right, bottom in pixels; right and bottom are exclusive.
    """

    label: str
    index: int
    share: float
    score: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True, repr=False)
class Segmentation:
    """A photo's segmentation.

    Attributes:
        labels: int32 (H,W), the photo's size: 0 is the background, i the i-th label given.
        scores: float32 (H,W), 0-1, the score of the label at each pixel.
        names: the labels given, in order; `names[i - 1]` is label i.
        photo: RGB uint8 (H,W,3), 0-255, upright.
        protocol: its name.
        background: as given to `Segmenter.segment`.
        presence: float32 (K,), 0-1, how likely each label is in the photo; 1 where the protocol did not judge.
    """

    labels: Int[ndarray, "H W"]
    scores: Float[ndarray, "H W"]
    names: tuple[str, ...]
    photo: UInt8[ndarray, "H W 3"]
    protocol: str
    background: Background
    presence: Float[ndarray, "K"]

    def found(self) -> list[Found]:
        """What was found in the photo, largest first, with the background."""
        areas = np.bincount(self.labels.ravel())
        score = np.bincount(self.labels.ravel(), self.scores.ravel()) / np.maximum(areas, 1)
        boxes = _boxes(self.labels, len(areas))
        found = [
            Found(self._name(i), i, float(areas[i] / self.labels.size), float(score[i]), boxes[i])
            for i in map(int, areas.nonzero()[0])
        ]
        return sorted(found, key=lambda f: -f.share)

    def not_found(self) -> list[str]:
        """The labels given that got no pixel, in order: absent from the photo, or something else won everywhere."""
        return [name for _, name in self._not_found()]

    def _not_found(self) -> list[tuple[int, str]]:
        areas = np.bincount(self.labels.ravel(), minlength=1 + len(self.names))
        return [(i, name) for i, name in enumerate(self.names, 1) if not areas[i]]

    def overlay(self) -> Image.Image:
        """The photo tinted with the labels' colours, their names on it, and a legend below.

        The legend has each label's share of the area, or that it was not found.
        """
        found = [(f.index, f.label, f.share) for f in self.found()]
        return draw_overlay(self.photo, self.labels, found, self._not_found())

    def index_image(self) -> Image.Image:
        """A palette image whose pixel values are the label indices; 16-bit greyscale where they exceed 255.

        Raises:
            ValueError: more labels than 16 bits can hold.
        """
        if len(self.names) > np.iinfo(np.uint16).max:
            raise ValueError(f"{len(self.names)} labels; a 16-bit mask holds {np.iinfo(np.uint16).max}: give fewer")
        if len(self.names) >= PALETTE_ENTRIES:
            return Image.fromarray(self.labels.astype(np.uint16))
        image = Image.fromarray(self.labels.astype(np.uint8))
        image.putpalette(palette(PALETTE_ENTRIES).ravel().tolist())
        return image

    def mask(self, label: str) -> Bool[ndarray, "H W"]:
        """Where the label is; all False if it was not found. "background" works too.

        Raises:
            ValueError: not one of the labels that were given.
        """
        return self.labels == self._index(label)

    def crop(self, label: str) -> Image.Image:
        """The photo within the label's box, RGB.

        Raises:
            ValueError: not one of the labels that were given, or not found in the photo.
        """
        left, top, right, bottom = self._box(label)
        return Image.fromarray(self.photo[top:bottom, left:right])

    def cutout(self, label: str) -> Image.Image:
        """Like `crop`, as RGBA: transparent where the label is not.

        Raises:
            ValueError: as for `crop`.
        """
        left, top, right, bottom = self._box(label)
        image = Image.fromarray(self.photo[top:bottom, left:right])
        image.putalpha(Image.fromarray(255 * self.mask(label)[top:bottom, left:right].astype(np.uint8)))
        return image

    def record(self) -> dict:
        """The content of `STEM.json`."""
        height, width = self.labels.shape
        return {
            "width": width,
            "height": height,
            "protocol": self.protocol,
            "background": self.background,
            "labels": list(self.names),
            "presence": {n: round(float(p), DIGITS) for n, p in zip(self.names, self.presence, strict=True)},
            "found": [asdict(f) for f in self.found()],
            "not_found": self.not_found(),
        }

    def to_coco(self, file_name: str = "photo") -> dict[str, Any]:
        """A COCO data set of this photo, ready for JSON: one annotation per label found, as compressed run lengths.

        The categories are all labels, numbered as in the label map, without the background. Each annotation has the
        mean `score` of its pixels.

        Args:
            file_name: the photo's file name in the data set.

        Raises:
            ValueError: pycocotools is not installed.
        """
        annotations = [
            coco.annotation(
                number, 1, f.index, coco.encode_rle(mask := self.labels == f.index), int(mask.sum()), f.box, f.score
            )
            for number, f in enumerate((f for f in self.found() if f.index), 1)
        ]
        height, width = self.labels.shape
        return {
            "images": [coco.image(1, file_name, (height, width))],
            "annotations": annotations,
            "categories": coco.categories(self.names),
        }

    def to_supervision(self) -> Any:
        """A `supervision.Detections` with one detection per label found, largest first, without the background.

        `mask` (N,H,W) and `xyxy` (N,4) are in pixels, `confidence` is the mean score, `class_id` the label's number in
        the label map (from 1), and `data["class_name"]` its name.

        Raises:
            ValueError: supervision is not installed.
        """
        supervision = require("supervision", package="supervision>=0.31")  # older ones overwrite our OpenCV
        found = [f for f in self.found() if f.index]
        return supervision.Detections(
            xyxy=np.array([f.box for f in found], np.float32).reshape(-1, 4),
            mask=np.array([self.labels == f.index for f in found], bool).reshape(-1, *self.labels.shape),
            confidence=np.array([f.score for f in found], np.float32),
            class_id=np.array([f.index for f in found], np.int64),
            data={"class_name": np.array([f.label for f in found], str)},
        )

    def save(self, folder: str | os.PathLike, stem: str) -> tuple[Path, Path, Path]:
        """Write `STEM.overlay.png`, `STEM.mask.png` and `STEM.json`, each atomically.

        The mask is a palette PNG, or with more than 255 labels a 16-bit greyscale PNG; pixel value = label index.

        Returns:
            The three paths, in that order.

        Raises:
            ValueError: `stem` is not a plain file name, or there are more labels than a 16-bit mask can hold.
            OSError: the folder cannot be written to.
        """
        if not stem or stem == ".." or Path(stem).name != stem:
            raise ValueError(f"stem {stem!r} is not a file name; give one without a folder")
        mask = self.index_image()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.record(), ensure_ascii=False, indent=2) + "\n"
        paths = folder / f"{stem}.overlay.png", folder / f"{stem}.mask.png", folder / f"{stem}.json"
        with atomic(paths[0]) as file:
            save_own_png(self.overlay(), file, compress_level=3)
        with atomic(paths[1]) as file:
            save_own_png(mask, file)
        with atomic(paths[2]) as file:
            file.write_bytes(text.encode())
        return paths

    def __repr__(self) -> str:
        """In one line: the photo's size, what was found, and what was not."""
        height, width = self.labels.shape
        found, missing = _list([f"{f.label} {f.share:.1%}" for f in self.found()]), self.not_found()
        return f"<Segmentation {width}x{height}: {found}{f'; not found: {_list(missing)}' if missing else ''}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the overlay."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()

    def _name(self, index: int) -> str:
        return self.names[index - 1] if index else BACKGROUND

    def _index(self, label: str) -> int:
        known = (BACKGROUND, *self.names)
        if label not in known:
            raise ValueError(f"label {label!r} was not given; choose one of {', '.join(map(repr, known))}")
        return known.index(label)

    def _box(self, label: str) -> tuple[int, int, int, int]:
        index = self._index(label)
        for found in self.found():
            if found.index == index:
                return found.box
        names = ", ".join(repr(found.label) for found in self.found())
        raise ValueError(f"label {label!r} was not found in the photo; choose one of {names}")


def _list(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def _boxes(labels: Int[ndarray, "H W"], count: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of labels 0 to count - 1; meaningless for one that does not occur."""
    ends = []
    for axis in (1, 0):
        length = labels.shape[axis]
        occurs = np.zeros((length, count), dtype=bool)  # which labels occur in each column, then row
        occurs[np.arange(length)[None, :] if axis else np.arange(length)[:, None], labels] = True
        ends.append((occurs.argmax(axis=0), length - occurs[::-1].argmax(axis=0)))
    (left, right), (top, bottom) = ends
    boxes = zip(left, top, right, bottom, strict=True)
    return [(int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in boxes]
