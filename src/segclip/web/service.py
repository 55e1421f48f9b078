"""What the page and the programs share: checks of a query, a bounded queue, one photo at a time. It knows no HTTP."""

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segclip.data.photos import Photo, decode_photo
from segclip.segment.background import Background, check_background
from segclip.segment.encoded import EncodedPhoto
from segclip.segment.presence import Presence, check_presence
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import Labels, check_labels
from segclip.web.encodings import Encodings

MAX_BYTES = 20 * 2**20  # of a photo's file
MAX_PIXELS = 40_000_000  # of a photo: about 1 GB of memory while it is segmented
MAX_LABELS = 100
MAX_LETTERS = 100  # of a label
QUEUE_SIZE = 32  # queries at a time, the one at work included
PROTOCOLS = ("open", "paper")  # to choose from
RETRY_AFTER = 10  # seconds until it is worth trying again, when the queue is full
ANY_LABEL = "cat"  # to compute what the first labels of all, or of a photo, need


class BusyError(Exception):
    """The queue is full."""

    def __init__(self) -> None:
        super().__init__(f"Many people are waiting already. Please try again in {RETRY_AFTER} seconds.")


class ForgottenError(Exception):
    """A photo that is asked about by its hash is not, or no longer, known."""

    def __init__(self) -> None:
        super().__init__("the server no longer has this photo; send it again")


@dataclass(frozen=True)
class Query:
    """What to find in a photo, and how; made by `Service.query`, which checks it."""

    labels: Labels
    model: str
    protocol: str
    background: Background
    presence: Presence
    taken: tuple[str, ...] = ()  # names of labels that are in the photo, whatever the protocol finds


class Service:
    """The models, a bounded queue for them, and the last photos that they encoded.

    Args:
        segmenters: for each model's name, one per protocol in `PROTOCOLS`.
        queue_size: how many queries are let in, the one at work included.

    Attributes:
        lock: held while a photo is decoded and segmented, so that memory is needed for one photo, not the whole queue.
        encodings: of the last photos.
    """

    def __init__(self, segmenters: Mapping[str, Mapping[str, Segmenter]], queue_size: int = QUEUE_SIZE) -> None:
        self.lock = threading.Lock()
        self.encodings = Encodings()
        self._segmenters = segmenters
        self._free = threading.Semaphore(queue_size)
        self._waiting = 0
        self._count_lock = threading.Lock()

    @property
    def models(self) -> list[str]:
        return list(self._segmenters)

    @property
    def waiting(self) -> int:
        """How many queries hold a slot now."""
        return self._waiting

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Holds a slot in the queue. Raises BusyError if it is full."""
        if not self._free.acquire(blocking=False):
            raise BusyError
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)
            self._free.release()

    def _count(self, more: int) -> None:
        with self._count_lock:
            self._waiting += more

    def warm_up(self) -> None:
        """Segment something, so that the first query takes no longer than the others."""
        for model in self.models:
            for protocol in PROTOCOLS:
                self._segmenters[model][protocol].segment(np.zeros((64, 64, 3), np.uint8), [ANY_LABEL])

    def query(
        self, labels: object, model: object, protocol: object, background: object, presence: object = "auto"
    ) -> Query:
        """Check what a client sent, which may be of any type.

        Args:
            labels: a list of texts, or one text of labels separated by commas or line breaks.
            model: one of `models`, None for the first.
            protocol: one of PROTOCOLS, None for the first.
            background: "auto", "none" or None, or a number in 0..1.
            presence: "auto", "none" or None; or a list of those labels that are in the photo, the others being judged.

        Raises:
            ValueError: anything else, with a message for the client.
        """
        if isinstance(labels, str):
            labels = [label for label in labels.replace("\n", ",").split(",") if label.strip()]
        if not isinstance(labels, list):
            raise ValueError("labels: give a list of texts, or one text of labels separated by commas")
        if not labels:
            raise ValueError("no labels; give at least one, such as cat")
        if len(labels) > MAX_LABELS:
            raise ValueError(f"{len(labels)} labels; at most {MAX_LABELS} are allowed")
        for label in labels:
            _check_text(label)
        checked = check_labels(labels)
        model, protocol = self.check_model(model), self.check_protocol(protocol)
        taken = _check_taken(presence, checked.names) if isinstance(presence, list) else ()
        judged = "auto" if isinstance(presence, list) else check_presence(presence)
        return Query(checked, model, protocol, check_background(background), judged, taken)

    def check_model(self, model: object) -> str:
        """One of `models`, None for the first. Raises ValueError for any other."""
        model = self.models[0] if model is None else model
        if not isinstance(model, str) or model not in self._segmenters:
            raise ValueError(f"model {_short(model)}; choose one of {', '.join(self.models)}")
        return model

    def check_protocol(self, protocol: object) -> str:
        """One of PROTOCOLS, None for the first. Raises ValueError for any other."""
        protocol = PROTOCOLS[0] if protocol is None else protocol
        if not isinstance(protocol, str) or protocol not in PROTOCOLS:
            raise ValueError(f"protocol {_short(protocol)}; choose one of {', '.join(PROTOCOLS)}")
        return protocol

    def add(self, data: bytes, model: str, protocol: str, name: str = "the photo") -> tuple[str, EncodedPhoto]:
        """Encode a photo's file and keep it, if it is not kept; the caller holds a slot and `lock`.

        Returns:
            Its SHA-256, by which `find` finds it again, and the encoded photo.

        Raises:
            ValueError: a photo that is too large or cannot be read.
        """
        if len(data) > MAX_BYTES:
            most = MAX_BYTES // 2**20
            raise ValueError(f"{name}: {len(data) / 2**20:.1f} MiB; at most {most} are allowed: scale it down")
        photo = hashlib.sha256(data).hexdigest()
        try:
            return photo, self.find(photo, model, protocol)
        except ForgottenError:
            return photo, self._encode(photo, decode_photo(data, name, MAX_PIXELS), model, protocol)

    def find(self, photo: str, model: str, protocol: str) -> EncodedPhoto:
        """The encoded photo with this SHA-256; encoded anew for another model or protocol than it was added with.

        Raises:
            ForgottenError: a photo that is not kept.
        """
        if encoded := self.encodings.get((photo, model, protocol)):
            return encoded
        if other := self.encodings.any_of(photo):
            return self._encode(photo, other.photo, model, protocol)
        raise ForgottenError

    def _encode(self, photo: str, pixels: Photo, model: str, protocol: str) -> EncodedPhoto:
        (encoded,) = self._segmenters[model][protocol].encode([pixels])
        self.encodings.put((photo, model, protocol), encoded)
        return encoded

    def label(self, photo: str, encoded: EncodedPhoto, query: Query) -> Segmentation:
        """Segment an encoded photo; the caller holds a slot and `lock`."""
        segmenter = self._segmenters[query.model][query.protocol]
        result = segmenter.label(encoded, query.labels, background=query.background, presence=query.presence)
        leaves_out = query.background is not None  # else every pixel gets one of all labels
        if leaves_out and any(result.presence[query.labels.names.index(name)] < 0.5 for name in query.taken):
            result = _label_with(segmenter, encoded, query, result)
        self.encodings.put((photo, query.model, query.protocol), encoded)  # with what was computed now
        return result

    def prepare(self, photo: str, model: str) -> None:
        """Compute what a kept photo's first labels will need, under every protocol, while nobody waits."""
        for protocol in PROTOCOLS:
            if self.waiting or not self.lock.acquire(blocking=False):
                return
            try:
                self.label(photo, self.find(photo, model, protocol), self.query([ANY_LABEL], model, protocol, "auto"))
            except ForgottenError:
                return
            finally:
                self.lock.release()


def open_service(
    models: Sequence[str], device: str, queue_size: int = QUEUE_SIZE, *, head: str | None = None
) -> Service:
    """A service with these models, by name or file, each loaded once; a file goes by its name without the folder.

    Raises:
        ValueError: no model, one that cannot be loaded or has no such head, or two with the same name.
    """
    if not models:
        raise ValueError("no model given; --model names one or more, such as mini")
    names = [Path(model).name or model for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"models {', '.join(models)}: two have the same name; rename a file")
    segmenters = {}
    for name, model in zip(names, models, strict=True):
        segmenter = Segmenter(model, head=head, device=device)
        segmenters[name] = {protocol: segmenter.with_protocol(protocol) for protocol in PROTOCOLS}
    return Service(segmenters, queue_size)


def _label_with(segmenter: Segmenter, encoded: EncodedPhoto, query: Query, judged: Segmentation) -> Segmentation:
    """The photo segmented by the labels that were judged to be in it and those that are taken to be."""
    labels = query.labels
    kept = [i for i, name in enumerate(labels.names) if judged.presence[i] >= 0.5 or name in query.taken]
    some = replace(labels, words=tuple(labels.words[i] for i in kept))
    found = segmenter.label(encoded, some, background=query.background, presence=None)
    index = np.array([0, *(1 + i for i in kept)], found.labels.dtype)  # of each kept label among all
    return replace(judged, labels=index[found.labels], scores=found.scores, draw=None)


def _check_taken(presence: list[object], names: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that are taken to be in the photo, by name."""
    if len(presence) > len(names):
        raise ValueError(f"presence: {len(presence)} labels, more than the {len(names)} of labels; give some of them")
    for label in presence:
        if label not in names:
            raise ValueError(f"presence: {_short(label)} is none of the labels; give auto, none, or some of them")
    return tuple(map(str, presence))


def _check_text(label: object) -> None:
    """Check what `check_labels` assumes."""
    if not isinstance(label, str):
        raise ValueError(f"label {_short(label)}; expected a text")
    if len(label) > MAX_LETTERS:
        raise ValueError(f"label {_short(label)} has {len(label)} letters; at most {MAX_LETTERS} are allowed")
    if any("\ud800" <= letter <= "\udfff" for letter in label):
        raise ValueError(f"label {label!r} holds half a character (a surrogate); remove it")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
