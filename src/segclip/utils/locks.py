"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def only_one_run(out: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{out}: another run is writing to this folder; wait for it, or give another one") from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror}); give another folder") from error
