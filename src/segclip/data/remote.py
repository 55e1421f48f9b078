"""Files that are elsewhere, through fsspec, and the room that they may take here."""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import fsspec

CHUNK = 1 << 20  # bytes read at once
# fsspec knows many more, some of which run commands, read other files or wrap a second address.
SCHEMES = ("https", "http", "s3", "gs", "hf", "file")
PLAIN_NAME = re.compile(
    r"(?!\.)[\w.-]{1,200}"
)  # of a file, where others name it: of no other folder, and no option or hidden


def is_remote(address: str) -> bool:
    """Whether this is an address, and no folder here."""
    return "://" in address


def check_address(address: str) -> None:
    """Raise ValueError where an address is of another kind than those of SCHEMES."""
    if address.partition("://")[0].lower() not in SCHEMES or "::" in address:
        raise ValueError(
            f"{address}: no address that shards are read from; expected one that begins with "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}: copy them there, or to a folder"
        )


def read_remote(address: str, most: int) -> Iterator[bytes]:
    """The content of a file that is elsewhere, in chunks.

    Args:
        address: of one of SCHEMES; some need a library of their own.
        most: bytes that it may have.

    Raises:
        ValueError: it cannot be fetched, its library is not installed, or it is larger.
    """
    check_address(address)
    try:
        opened: Any = fsspec.open(address, "rb", **_options(address))  # its types know one file or many
        with opened as file:
            while chunk := file.read(CHUNK):
                most -= len(chunk)
                if most < 0:
                    break
                yield chunk
    except ImportError as error:
        raise ValueError(f'{address}: {error}; for http and https: pip install "segclip[train]"') from error
    except Exception as error:  # each kind of store has errors of its own
        cause = error.__cause__ or error  # fsspec's own words are often no more than the address
        reason = str(cause) or type(cause).__name__
        raise ValueError(f"{address}: cannot be fetched ({reason}); check the address and the network") from error
    if most < 0:
        raise ValueError(f"{address}: larger than it should be, by at least {-most} bytes; copy the shards again")


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


def _options(address: str) -> dict[str, Any]:
    """For http and https: a proxy that the environment names is used, as by pip and curl, and https stays https."""
    if not address.lower().startswith(("http://", "https://")):
        return {}
    return {"client_kwargs": {"trust_env": True, "trace_configs": [_trace()]}}


@cache  # fsspec opens a session for each other set of options
def _trace() -> Any:
    from aiohttp import TraceConfig  # comes with the extra `train`, as does reading by http at all

    trace = TraceConfig()
    trace.on_request_redirect.append(_stay_encrypted)
    return trace


async def _stay_encrypted(session: Any, context: Any, redirect: Any) -> None:
    target = redirect.response.headers.get("Location", "")
    if redirect.url.scheme == "https" and target.lower().startswith("http:"):
        raise ValueError(f"it redirects from https to {target}, where anybody on the way can change it")
