"""Many photos through one model: reading and finishing overlap its work, and a bad photo stops no other."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from segclip.data.photos import open_photo
from segclip.segment.segmenter import AnyPhoto, Background, EncodedPhoto, Segmentation, Segmenter
from segclip.utils.prefetch import overlapped

BATCH = 4  # photos at once: enough windows for a GPU, few enough pixels for a laptop

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


def segment_all(
    segmenter: Segmenter,
    named: Sequence[tuple[Path, str]],
    labels: Sequence[str],
    background: Background,
    finish: Callable[[Segmentation, Path, str], R | str],
) -> Iterator[tuple[Path, R | str]]:
    """Each photo, and what became of it; the next ones are read, the last ones finished, while the model works.

    Args:
        segmenter: the model and the protocol.
        named: photos, each with the stem of its files.
        labels: as for `Segmenter.segment`.
        background: likewise.
        finish: makes of a photo's segmentation, its path and stem what is given back; a text is a reason to fail.
    """

    def read(batch: Sequence[tuple[Path, str]]) -> list[tuple[Path, str, AnyPhoto | str]]:
        return [(path, stem, attempt(open_photo, path)) for path, stem in batch]

    def label(batch: Sequence[tuple[Path, str, EncodedPhoto | str]]) -> list[tuple[Path, R | str]]:
        return [
            (path, photo if isinstance(photo, str) else label_one(photo, path, stem)) for path, stem, photo in batch
        ]

    def label_one(photo: EncodedPhoto, path: Path, stem: str) -> R | str:
        result = attempt(lambda: segmenter.label(photo, labels, background=background))
        return result if isinstance(result, str) else finish(result, path, stem)

    batches = [named[i : i + BATCH] for i in range(0, len(named), BATCH)]
    encoded = (_encode(segmenter, batch) for batch in overlapped(batches, read))
    for results in overlapped(encoded, label):
        yield from results


def _encode(
    segmenter: Segmenter, batch: Sequence[tuple[Path, str, AnyPhoto | str]]
) -> list[tuple[Path, str, EncodedPhoto | str]]:
    """Encode together; where that fails, for want of memory mostly, one by one."""
    photos = [photo for *_, photo in batch if not isinstance(photo, str)]
    found = attempt(segmenter.encode, photos)
    encoded = iter([attempt(lambda p=p: segmenter.encode([p])[0]) for p in photos] if isinstance(found, str) else found)
    return [(path, stem, photo if isinstance(photo, str) else next(encoded)) for path, stem, photo in batch]


def attempt(work: Callable[..., T], *arguments: object) -> T | str:
    """What it gives, or why a photo cannot be segmented."""
    try:
        return work(*arguments)
    except ValueError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        log.debug("a photo failed", exc_info=True)
        why = "out of memory; scale the photo down" if isinstance(error, MemoryError) else f"{error}"
        return f"cannot be segmented: {why}"
