"""Files that are elsewhere, through fsspec, and the room that they may take here."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

CHUNK = 1 << 20  # bytes read at once


def is_remote(address: str) -> bool:
    """Whether this is an address, and no folder here."""
    return "://" in address


def read_remote(address: str) -> Iterator[bytes]:
    """The content of a file that is elsewhere, in chunks.

    Args:
        address: of a kind that fsspec knows: https://, s3://, gs://, hf:// ...; some need a library of their own.

    Raises:
        ValueError: it cannot be fetched, or its library is not installed.
    """
    # A proxy that the environment names is used, as by pip and curl.
    options: dict[str, Any] = (
        {"client_kwargs": {"trust_env": True}} if address.startswith(("http://", "https://")) else {}
    )
    try:
        opened: Any = fsspec.open(address, "rb", **options)  # its types know one file or many
        with opened as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except ImportError as error:
        raise ValueError(f'{address}: {error}; for http and https: pip install "segclip[train]"') from error
    except Exception as error:  # each kind of store has errors of its own
        reason = str(error) or type(error).__name__
        raise ValueError(f"{address}: cannot be fetched ({reason}); check the address and the network") from error


def make_room(folder: Path, size: int) -> None:
    """Delete the oldest shards of a folder until the others are at most `size` bytes; who has one open can read on."""
    found = []
    for path in (*folder.glob("*.tar"), *folder.glob("*.npy")):
        with suppress(OSError):  # another process makes room, too
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    for _, bytes_, path in sorted(found, reverse=True):
        size -= bytes_
        if size < 0:
            with suppress(OSError):  # deleted by another; or open, on Windows
                path.unlink()
