"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segclip.utils.files import remove_unfinished


@contextmanager
def only_one_run(out: Path) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and clear away what a killed one left unfinished."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            remove_unfinished(out)
            yield
    except Timeout:
        raise ValueError(f"{out}: another run is writing to this folder; wait for it, or give another one") from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror}); give another folder") from error
