"""Where what is fetched is kept, and files that are whole or not there."""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """$SEGCLIP_CACHE, or segclip in $XDG_CACHE_HOME, or ~/.cache/segclip."""
    if own := os.environ.get("SEGCLIP_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "segclip"


def write_aside(file: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file beside `file`, then give it its name; if it fails, what was there stays."""
    aside = file.with_name(f"{file.name}.part")
    try:
        write(aside)
        os.replace(aside, file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def no_space(out: Path) -> Iterator[None]:
    """Say of a full disk that what is done is kept."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = isinstance(error, sqlite3.OperationalError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not full:
            raise
        raise ValueError(
            f"{out}: the disk is full ({error}); what is done is kept: free some space, and give the same command again"
        ) from error
