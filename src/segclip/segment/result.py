"""The result of segmenting a photo: a label per pixel, to show and to save.

Axes: H W pixels, K labels.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from PIL import Image

from segclip.data.own_pictures import save_own_png
from segclip.data.photos import PhotoSource
from segclip.segment import coco, saved
from segclip.segment.background import Background, check_background
from segclip.text.labels import BACKGROUND
from segclip.utils.files import atomic
from segclip.utils.messages import shorten
from segclip.utils.optional import require
from segclip.visualize import draw_overlay, palette

LINE = 118  # letters of a result's repr, as far as the names allow
MISSING = 33  # of them, at least, for what was not found
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
        draw: draws the soft map of a label by its index; None for a result that was loaded or came from elsewhere.
        has_photo: whether `photo` is the photo: `load` may not be given it.
    """

    labels: Int[ndarray, "H W"]
    scores: Float[ndarray, "H W"]
    names: tuple[str, ...]
    photo: UInt8[ndarray, "H W 3"]
    protocol: str
    background: Background
    presence: Float[ndarray, "K"]
    draw: Callable[[int], Float[ndarray, "H W"]] | None = field(default=None, repr=False, compare=False)
    has_photo: bool = True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "draw": None}  # what draws holds the model, too large to go with every result

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

        Raises:
            ValueError: loaded without the photo.
        """
        self._need_photo()
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
            ValueError: not one of the labels that were given, not found in the photo, or loaded without the photo.
        """
        self._need_photo()
        left, top, right, bottom = self._box(label)
        return Image.fromarray(self.photo[top:bottom, left:right])

    def cutout(self, label: str) -> Image.Image:
        """Like `crop`, as RGBA: transparent where the label is not.

        Raises:
            ValueError: as for `crop`.
        """
        self._need_photo()
        left, top, right, bottom = self._box(label)
        image = Image.fromarray(self.photo[top:bottom, left:right])
        image.putalpha(Image.fromarray(255 * self.mask(label)[top:bottom, left:right].astype(np.uint8)))
        return image

    def probability(self, label: str) -> Float[ndarray, "H W"]:
        """The label's soft map, float32 0-1, drawn when asked for. "background" works too.

        With "open": how surely each pixel is within the label's extent; labels do not compete, so the maps do not sum
        to 1, and a label found absent is 0 everywhere. With "paper" and "groupvit": the label's score, of which the
        highest wins. With "dense": how likely it is among all words. Where a label was found, `scores` is its soft map.

        Raises:
            ValueError: not one of the labels that were given; or the result was loaded, unpickled, or made by a
                protocol that has no soft maps.
        """
        index = self._index(label)
        if self.draw is None:
            raise ValueError("this result was loaded or sent, without what draws soft maps; segment the photo again")
        return self.draw(index)

    def probabilities(self) -> Iterator[tuple[str, Float[ndarray, "H W"]]]:
        """Name and soft map of the background and of each label, in order, drawn one at a time: see `probability`.

        However many labels there are, one map is in memory. For few, `dict(result.probabilities())` has all, and
        `np.stack([soft for _, soft in result.probabilities()])` is (1+K,H,W).

        Raises:
            ValueError: as for `probability`.
        """
        for name in (BACKGROUND, *self.names):
            yield name, self.probability(name)

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
        paths = saved.paths(folder, stem)
        mask = self.index_image()
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.record(), ensure_ascii=False, indent=2) + "\n"
        with atomic(paths[0]) as file:
            save_own_png(self.overlay(), file, compress_level=3)
        with atomic(paths[1]) as file:
            save_own_png(mask, file)
        with atomic(paths[2]) as file:
            file.write_bytes(text.encode())
        return paths

    @classmethod
    def load(cls, folder: str | os.PathLike, stem: str, photo: PhotoSource | None = None) -> "Segmentation":
        """What `save` wrote: the label map, and all that `STEM.json` says.

        The photo itself is not saved, so `overlay`, `crop` and `cutout` need it given here. Nor is the score of each
        pixel: `scores` has each label's mean, so that `found()` says the same.

        Args:
            folder, stem: as given to `save`.
            photo: as for `Segmenter.segment`.

        Raises:
            ValueError: a file is missing, or the files do not belong together; a photo of another size.
        """
        labels, scores, record, pixels = saved.read(folder, stem, photo)
        names = tuple(record["labels"])
        presence = np.array([record["presence"][name] for name in names], np.float32)
        background = check_background(record["background"])
        blank = np.full((*labels.shape, 3), 255, np.uint8) if pixels is None else pixels
        given = pixels is not None
        loaded = cls(labels, scores, names, blank, record["protocol"], background, presence, has_photo=given)
        saved.check_found(folder, stem, record["found"], [asdict(found) for found in loaded.found()])
        return loaded

    def __repr__(self) -> str:
        """In one line: the photo's size, what was found, and what was not."""
        height, width = self.labels.shape
        start = f"<Segmentation {width}x{height}: "
        return f"{start}{self.summary(LINE - len(start))}>"

    def summary(self, room: int = LINE) -> str:
        """What was found, largest first, and what was not, in so many letters, as far as the names allow."""
        text = _list([f"{f.label} {f.share:.1%}" for f in self.found()], room - (MISSING if self.not_found() else 0))
        if missing := self.not_found():
            text += "; not found: "
            text += _list(missing, room - len(text))
        return text

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the overlay."""
        if not self.has_photo:
            return None
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()

    def _need_photo(self) -> None:
        if not self.has_photo:
            raise ValueError("the photo is not saved with a result; give it: Segmentation.load(folder, stem, photo)")

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


def _list(texts: Sequence[str], room: int) -> str:
    """As many of the texts as fit into so many letters, at least the first, and how many more there are."""
    for shown in range(len(texts), 0, -1):
        more = f", and {len(texts) - shown} more" if shown < len(texts) else ""
        line = ", ".join(texts[:shown]) + more
        if len(line) <= room:
            return line
    return shorten(texts[0], max(room - len(more), 20)) + more


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
