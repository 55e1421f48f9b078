"""One file over HTTP, once: with a progress bar, resumed where it broke, seen under its name only when whole.

What the server says is not believed: the file is as long as was announced and within a limit, from https nothing leads
to http, and what is kept is checked by its sha256.
"""

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from segclip.checkpoints.native import CheckpointError
from segclip.utils.files import atomic
from segclip.utils.messages import brief, shorten

log = logging.getLogger(__name__)

ATTEMPTS = 4  # connections in one call; each goes on where the last one broke
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20
LARGEST = 4 << 30  # bytes of a file, announced or not; weights of the largest CLIP that is known are about as much


class DownloadError(CheckpointError):
    """A file that could not be downloaded: says from where, why, and where to put it by hand.

    Attributes:
        reason: why, alone.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class _Broken(Exception):
    """The connection ended before the file did."""


class _Refused(Exception):
    """What the server sends is not taken."""


@dataclass(frozen=True)
class _Asked:
    """What is asked for: an address, headers for it alone, and what to call it."""

    url: str
    headers: Mapping[str, str]
    title: str


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    largest: int = LARGEST,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
    title: str = "",
) -> None:
    """Download a file to `target`. A part left by a broken download (`NAME.part`) is continued.

    Callers hold a lock where several processes may download the same file.

    Args:
        url: of http or https.
        target: where it goes.
        sha256: of the file, in hexadecimal digits, where it is known.
        largest: bytes that are taken at most.
        size: of the file in bytes, where it is known from elsewhere than this server's answer.
        headers: to send, and to no other address that it leads to.
        title: of the progress bar; else the name in the address.

    Raises:
        DownloadError: no network, an error of the server, a connection that keeps breaking, a full disk; a file that is
            larger than `largest`, not of `size`, or not the one of `sha256`; a way that leads from https to http.
    """
    asked = _Asked(url, dict(headers or {}), title or url.rpartition("/")[2])
    part = target.with_name(target.name + ".part")
    reason = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            try:
                _continue(asked, part, largest if size is None else size)
                if size is not None and _size(part) != size:
                    raise _Broken(f"{size:,} were announced")
                if sha256 and (found := file_sha256(part)) != sha256:
                    part.unlink()
                    raise _Refused(f"its sha256 is {found}, expected {sha256}")
                os.replace(part, target)
                _validator(part).unlink(missing_ok=True)
                return
            except (_Broken, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                reason = f"the connection broke at {_size(part):,} bytes: {error}; run again to continue there"
                log.info("%s: %s", url, reason)
    except _Refused as error:
        reason = str(error)
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = f"no connection: {error.reason}"
    except (OSError, ValueError) as error:  # ValueError: an address or a header that makes no sense
        reason = str(error)
    raise DownloadError(f"cannot download {url} ({reason}); or download it by hand and put it at {target}", reason)


def file_sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_sha256(path: Path) -> None:
    """Write a file's sha256 beside it (`NAME.sha256`, as the command sha256sum has it)."""
    with atomic(_checksum(path)) as file:
        file.write_text(f"{file_sha256(path)}  {path.name}\n", encoding="utf-8")


def check_sha256(path: Path) -> None:
    """Compare a file with the sha256 beside it; where there is none yet, it is written.

    Raises:
        CheckpointError: the file is not what it was.
    """
    if not _checksum(path).is_file():
        keep_sha256(path)
        return
    kept = _checksum(path).read_bytes()[:64].decode("ascii", "replace")
    if (found := file_sha256(path)) != kept:
        raise CheckpointError(
            f"{path}: changed since it was made: its sha256 is {found}, and {_checksum(path).name} says {kept}; delete "
            "both, and the file is fetched again"
        )


def forget_sha256(path: Path) -> None:
    """Delete the sha256 beside a file that is to be written anew."""
    _checksum(path).unlink(missing_ok=True)


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """From https only to https, from http to either."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme, req.type) != ("http", "http"):
            raise _Refused(f"it leads from {req.type} to {shorten(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _continue(asked: _Asked, part: Path, largest: int) -> None:
    """One connection: append to the part what is missing, or start over where the server or its file demands it."""
    have = _size(part)
    try:
        response = urllib.request.build_opener(_Redirects).open(_request(asked, part, have), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing follows what we have
            raise
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return  # whole, only not yet renamed
        part.unlink()  # longer than the file now is
        _continue(asked, part, largest)
        return
    with response:
        resumed = response.status == 206
        start, total = _extent(response, have if resumed else 0)
        if start != (have if resumed else 0):
            part.unlink(missing_ok=True)
            raise _Broken(f"the server sent bytes from {start:,} on")
        if total is not None and total > largest:
            raise _Refused(f"{total:,} bytes were announced; expected at most {largest:,}")
        etag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
        _validator(part).write_text(validator, encoding="latin-1")  # as headers are
        most, size = largest if total is None else total, start
        with part.open("ab" if resumed else "wb") as file, _progress() as progress:
            task = progress.add_task(asked.title, total=total, completed=start)
            while chunk := response.read(CHUNK):
                size += len(chunk)
                if size > most:
                    break
                file.write(chunk)
                progress.advance(task, len(chunk))
        if size > most:
            part.unlink()
            raise _Refused(f"the server sent more than {most:,} bytes")
    if total is not None and _size(part) != total:
        raise _Broken(f"{total:,} were announced")


def _request(asked: _Asked, part: Path, have: int) -> urllib.request.Request:
    headers = {"User-Agent": "segclip", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _validator(part).is_file() and (validator := _validator(part).read_text(encoding="latin-1")):
            headers["If-Range"] = validator  # another file by now: the server sends it from its start
    request = urllib.request.Request(asked.url, headers=headers)
    for name, value in asked.headers.items():
        request.add_unredirected_header(name, value)
    return request


def _extent(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """First byte that the response holds, and the length of the whole file where the server says it."""
    if response.status == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start = _count(span.partition("-")[0])
        if start is None:
            raise _Broken("the server sent a part without saying which")
        return start, None if total == "*" else _count(total)
    length = response.headers.get("Content-Length")
    if length is None:
        return have, None
    if (total := _count(length)) is None:
        raise _Refused(f"the server announced {brief(length)} bytes")
    return have, total


def _count(text: str) -> int | None:
    """A number of bytes in a header; None for all else, such as other alphabets' digits."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _validator(part: Path) -> Path:
    """What the server calls this version of its file, kept beside the part."""
    return part.with_name(part.name + ".validator")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
