"""Segments many photos: reading and writing overlap with the model's work, and a bad photo does not stop the others."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from segclip.data.photos import open_photo
from segclip.segment.background import Background
from segclip.segment.encoded import AnyPhoto, EncodedPhoto
from segclip.segment.presence import Presence
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.text.labels import Label, Labels
from segclip.utils.batches import batched
from segclip.utils.failures import Failed, attempt
from segclip.utils.prefetch import prefetched

BATCH, GPU_BATCH = 4, 16  # photos at once: few enough pixels for a laptop, windows enough for a GPU
READERS, FINISHERS = 4, 16  # most threads while a GPU encodes, so that it rarely waits; on a CPU there is one of each

R = TypeVar("R")


def segment_all(
    segmenter: Segmenter,
    named: Sequence[tuple[Path, str]],
    labels: Labels | Sequence[Label],
    background: Background,
    presence: Presence,
    finish: Callable[[Segmentation, Path, str], R | Failed],
    read_photo: Callable[[Path], AnyPhoto] | None = None,
) -> Iterator[tuple[Path, R | Failed]]:
    """Each photo with its result; the next photos are read and the last ones finished while the model works.

    On a GPU several threads read and several finish photos; on a CPU, whose cores the model uses, one each.

    Args:
        segmenter: the model and the protocol.
        named: photos, each with the stem of its files.
        labels: as for `Segmenter.segment`.
        background, presence: as for `Segmenter.segment`.
        finish: turns a photo's segmentation, path and stem into its result, or says or raises why it cannot; called
            by several threads at once.
        read_photo: reads a photo of `named`; None: `open_photo`.
    """

    def read(one: tuple[Path, str]) -> tuple[Path, str, AnyPhoto | Failed]:
        path, stem = one
        return path, stem, attempt(path, partial(read_photo or open_photo, path))

    def label(one: tuple[Path, str, EncodedPhoto | Failed]) -> tuple[Path, R | Failed]:
        path, stem, photo = one
        if isinstance(photo, Failed):
            return path, photo

        def work() -> R | Failed:
            result = segmenter.label(photo, labels, background=background, presence=presence)
            return finish(result, path, stem)

        return path, attempt(path, work)

    on_cpu = segmenter.encoder.device.type == "cpu"
    size, cores = (BATCH, 1) if on_cpu else (GPU_BATCH, os.cpu_count() or 1)
    photos = prefetched(named, read, threads=min(READERS, cores), ahead=size)
    encoded = (photo for batch in batched(photos, size) for photo in _encode(segmenter, batch))
    # On a GPU one batch waits for the threads that finish while the next is encoded.
    yield from prefetched(encoded, label, threads=min(FINISHERS, cores), ahead=size if on_cpu else 2 * size)


def _encode(
    segmenter: Segmenter, batch: Sequence[tuple[Path, str, AnyPhoto | Failed]]
) -> list[tuple[Path, str, EncodedPhoto | Failed]]:
    """Encode a batch together; if that fails, mostly for lack of memory, one by one."""
    photos = {path: photo for path, _, photo in batch if not isinstance(photo, Failed)}
    found = attempt("a batch", partial(segmenter.encode, list(photos.values())))
    if isinstance(found, Failed):
        found = [attempt(path, lambda photo=photo: segmenter.encode([photo])[0]) for path, photo in photos.items()]
    encoded = dict(zip(photos, found, strict=True))
    return [(path, stem, photo if isinstance(photo, Failed) else encoded[path]) for path, stem, photo in batch]
