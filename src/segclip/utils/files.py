"""Where what is fetched is kept, and files that are whole or not there."""

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_folder() -> Path:
    """$SEGCLIP_CACHE, or segclip in $XDG_CACHE_HOME, or ~/.cache/segclip."""
    if own := os.environ.get("SEGCLIP_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "segclip"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file so that under its name there is the whole of it, or what was there before.

    The block writes to the path that it is given, an empty file beside `path`. When the block ends, its content is
    safe on the disk and the file gets its name; when it raises, the file is removed. What a process leaves that is
    killed meanwhile, `remove_unfinished` deletes.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # short: the name may be as long as a name can be
    try:
        with temporary.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode  # as the umask has it; some libraries make files of their own mode
        yield temporary
        if not temporary.is_symlink():
            temporary.chmod(mode)
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Let the names in a folder be safe on the disk, as `atomic` lets what is in the files; where that can be asked."""
    if os.name == "posix":  # Windows opens no folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed runs left of files that `atomic` was to write; only for who alone writes to the folder."""
    for path in folder.rglob(".*.part"):
        path.unlink(missing_ok=True)


@contextmanager
def no_space(out: Path) -> Iterator[None]:
    """Say of a full disk that what is done is kept."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if not isinstance(error, sqlite3.OperationalError) and error.errno not in DISK_FULL:
            raise
        raise ValueError(
            f"{out}: the disk is full ({error}); what is done is kept: free some space, and give the same command again"
        ) from error
