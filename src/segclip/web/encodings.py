"""The last photos that were encoded, so that other labels, backgrounds or protocols are answered at once."""

import dataclasses
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from segclip.segment.encoded import EncodedPhoto

Key = tuple[str, str, str]  # SHA-256 of the photo's file, model, protocol

MAX_COUNT = 64  # a photo has one for each protocol it was asked with
MAX_BYTES = 512 * 2**20


class Encodings:
    """Encoded photos, the least recently used dropped first; threads may share it.

    Args:
        max_count: how many are kept.
        max_bytes: of memory that they may take together; the newest is kept whatever it takes.
    """

    def __init__(self, max_count: int = MAX_COUNT, max_bytes: int = MAX_BYTES) -> None:
        self._kept: OrderedDict[Key, EncodedPhoto] = OrderedDict()
        self._bytes: dict[Key, int] = {}
        self._max_count, self._max_bytes = max_count, max_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Memory that they take together, as far as it was known when each was last put here."""
        return sum(self._bytes.values())

    def get(self, key: Key) -> EncodedPhoto | None:
        """None: it is not, or no longer, kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def any_of(self, photo: str) -> EncodedPhoto | None:
        """An encoding of the photo with this SHA-256, for any model or protocol: it has the pixels."""
        with self._lock:
            return next((encoded for key, encoded in self._kept.items() if key[0] == photo), None)

    def put(self, key: Key, encoded: EncodedPhoto) -> None:
        """Keep it, and measure it anew: what is first computed with labels stays with it."""
        with self._lock:
            self._kept[key], self._bytes[key] = encoded, count_bytes(encoded)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and (len(self._kept) > self._max_count or self.nbytes > self._max_bytes):
                del self._bytes[self._kept.popitem(last=False)[0]]


def count_bytes(value: Any) -> int:
    """Of the arrays and tensors in a value: dataclasses, lists, tuples and dicts are looked into."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.nbytes
    if dataclasses.is_dataclass(value):
        return sum(count_bytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(count_bytes, value)) if isinstance(value, list | tuple) else 0
