"""One run at a time in a folder, or on a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segclip.utils.files import remove_unfinished


@contextmanager
def only_one_run(out: Path, wait: float = 0.0) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and clear away what a killed one left unfinished.

    Args:
        out: the folder.
        wait: seconds to wait for a run that is ending; that long, the readers of a killed one may live on.

    Raises:
        ValueError: another run is writing to the folder, or nobody can.
    """
    refusal = f"{out}: another run is writing to this folder; wait for it, or give another one"
    with _held(out / ".lock", wait, refusal):
        remove_unfinished(out)
        yield


@contextmanager
def only_one_writer(file: Path) -> Iterator[None]:
    """Keep other runs away from a file that is to be written, and from what lies beside it under its name.

    Raises:
        ValueError: another run is writing it, or nobody can.
    """
    with _held(file.with_name(f".{file.stem}.lock"), 0.0, f"{file}: another run is writing it; give another file"):
        yield


@contextmanager
def _held(lock: Path, wait: float, refusal: str) -> Iterator[None]:
    """A lock's file; what the block raises passes by."""
    held = FileLock(lock, timeout=wait)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        raise ValueError(refusal) from None
    except OSError as error:
        raise ValueError(
            f"{lock.parent}: cannot be written ({error.strerror or error}); give another folder"
        ) from error
    try:
        yield
    finally:
        held.release()
