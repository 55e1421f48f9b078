"""What stands behind the page and the endpoint: what may be asked, one photo at a time, a line with an end.

Nothing here knows of HTTP, nor of gradio.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segclip.data.photos import Photo, decode_photo
from segclip.segment.background import Background, check_background
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import check_labels

MAX_BYTES = 20 * 2**20  # of a photo's file
MAX_PIXELS = 40_000_000  # of a photo: about 1 GB of memory while it is segmented
MAX_LABELS = 100
MAX_LETTERS = 100  # of a label
PLACES = 16  # one at work, the others in line
PROTOCOLS = ("open", "paper")  # that are offered
RETRY_AFTER = 10  # seconds until it is worth to ask again, when the line is full

Tell = Callable[[float, str], object]  # what is being done, and what share of all is behind


class BusyError(Exception):
    """The line is full."""

    def __init__(self) -> None:
        super().__init__(f"Many people are waiting already. Please try again in {RETRY_AFTER} seconds.")


@dataclass(frozen=True)
class Question:
    """What somebody wants to know of a photo; made by `Desk.question`, which checks it."""

    labels: tuple[str, ...]
    model: str
    protocol: str
    background: Background


class Desk:
    """The models, and the line of those who wait for them.

    Args:
        segmenters: for each model's name, one per protocol of `PROTOCOLS`.
        places: for how many there is room, the one at work included.

    Attributes:
        working: held by the one whose photo is at work; memory is needed for one photo, not for all in line.
    """

    def __init__(self, segmenters: Mapping[str, Mapping[str, Segmenter]], places: int = PLACES) -> None:
        self.working = threading.Lock()
        self._segmenters = segmenters
        self._free = threading.Semaphore(places)

    @property
    def models(self) -> list[str]:
        return list(self._segmenters)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line. Raises BusyError when there is none."""
        if not self._free.acquire(blocking=False):
            raise BusyError
        try:
            yield
        finally:
            self._free.release()

    def warm_up(self) -> None:
        """Segment something, so that the first who comes waits no longer than the others."""
        for model in self.models:
            for protocol in PROTOCOLS:
                self._segmenters[model][protocol].segment(np.zeros((64, 64, 3), np.uint8), ["cat"])

    def question(self, labels: object, model: object, protocol: object, background: object) -> Question:
        """What a client sent, of whatever type, as a question.

        Args:
            labels: a list of texts, or one text with commas or line ends between the labels.
            model: one of `models`, None for the first.
            protocol: one of PROTOCOLS, None for the first.
            background: "auto", "none" or None, or a number in 0..1.

        Raises:
            ValueError: anything else, in words for who asked.
        """
        if isinstance(labels, str):
            labels = [label for label in labels.replace("\n", ",").split(",") if label.strip()]
        if not isinstance(labels, list):
            raise ValueError("labels: give a list of texts, or one text with commas between the labels")
        if len(labels) > MAX_LABELS:
            raise ValueError(f"{len(labels)} labels; at most {MAX_LABELS} are taken at once")
        for label in labels:
            _check_text(label)
        model = self.models[0] if model is None else model
        if not isinstance(model, str) or model not in self._segmenters:
            raise ValueError(f"model {_short(model)}; here are {', '.join(self.models)}")
        protocol = PROTOCOLS[0] if protocol is None else protocol
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {_short(protocol)}; choose one of {', '.join(PROTOCOLS)}")
        return Question(check_labels(labels), model, protocol, check_background(background))

    def segment(self, photo: Photo, question: Question, tell: Tell = lambda share, what: None) -> Segmentation:
        """Segment; who calls it holds a place and `working`."""
        segmenter = self._segmenters[question.model][question.protocol]
        tell(0.3, "Looking at the photo")
        (encoded,) = segmenter.encode([photo])
        tell(0.7, "Finding your labels")
        return segmenter.label(encoded, question.labels, background=question.background)


def open_desk(models: Sequence[str], device: str, places: int = PLACES) -> Desk:
    """A desk with the models of these names or files, each loaded once; a file goes by its name, without its folder.

    Raises:
        ValueError: no model, one that cannot be loaded, or two of one name.
    """
    if not models:
        raise ValueError("no model given; --model names one or more, such as mini")
    names = [Path(model).name or model for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"models {', '.join(models)}: two go by the same name; rename a file")
    segmenters = {}
    for name, model in zip(names, models, strict=True):
        segmenter = Segmenter(model, device=device)
        segmenters[name] = {protocol: segmenter.with_protocol(protocol) for protocol in PROTOCOLS}
    return Desk(segmenters, places)


def read_photo(data: bytes, name: str = "the photo") -> Photo:
    """The photo in an image file's bytes.

    Raises:
        ValueError: more than MAX_BYTES or MAX_PIXELS, or no photo that can be read.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name}: {len(data) / 2**20:.1f} MiB; at most {MAX_BYTES // 2**20} are taken: scale it down")
    return decode_photo(data, name, MAX_PIXELS)


def _check_text(label: object) -> None:
    """What `check_labels` takes for granted."""
    if not isinstance(label, str):
        raise ValueError(f"label {_short(label)}; expected a text")
    if len(label) > MAX_LETTERS:
        raise ValueError(f"label {_short(label)} has {len(label)} letters; at most {MAX_LETTERS} are taken")
    if any("\ud800" <= letter <= "\udfff" for letter in label):
        raise ValueError(f"label {label!r} holds half a letter, which no text may; remove it")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
