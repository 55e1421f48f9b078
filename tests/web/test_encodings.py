"""The last encoded photos: bounded in number and memory, the least recently used dropped first."""

import numpy as np
import torch

from segclip.segment.encoded import EncodedPhoto
from segclip.web.encodings import Encodings, count_bytes


def encoded(size: int = 10) -> EncodedPhoto:
    return EncodedPhoto(np.zeros((1, size, 3), np.uint8), [], [])


def key(name: str, protocol: str = "open") -> tuple[str, str, str]:
    return name, "mini", protocol


def test_the_least_recently_used_is_dropped_first() -> None:
    kept = Encodings(max_count=2)
    for name in ("a", "b"):
        kept.put(key(name), encoded())
    assert kept.get(key("a")) is not None
    kept.put(key("c"), encoded())
    assert kept.get(key("b")) is None and kept.get(key("a")) is not None and len(kept) == 2


def test_memory_is_bounded_with_what_was_computed_later() -> None:
    kept = Encodings(max_bytes=100)
    one = encoded(10)
    kept.put(key("a"), one)
    kept.put(key("b"), encoded(10))
    assert kept.nbytes == 60 and len(kept) == 2
    one.once(lambda photo: torch.zeros(10))  # 40 bytes more
    kept.put(key("a"), one)
    assert kept.nbytes == 100
    kept.put(key("c"), encoded(11))
    assert kept.nbytes <= 100 and kept.get(key("b")) is None and kept.get(key("c")) is not None
    kept.put(key("large"), encoded(1000))
    assert len(kept) == 1 and kept.get(key("large")) is not None  # the newest stays


def test_any_encoding_of_a_photo() -> None:
    kept = Encodings()
    one = encoded()
    kept.put(key("a", "paper"), one)
    assert kept.any_of("a") is one and kept.any_of("b") is None


def test_bytes_are_counted_wherever_they_are() -> None:
    photo = encoded(10)
    photo.once(lambda _: {"x": [torch.zeros(3, dtype=torch.int16)], "y": (np.zeros(2),)})
    assert count_bytes(photo) == 30 + 6 + 16
