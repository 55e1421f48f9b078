"""One file over HTTP, once: with a progress bar, resumed where it broke, seen under its name only when whole."""

import http.client
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from segclip.checkpoints.native import CheckpointError

log = logging.getLogger(__name__)

ATTEMPTS = 4  # connections in one call; each goes on where the last one broke
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20


class DownloadError(CheckpointError):
    """A file that could not be downloaded: says from where, why, and where to put it by hand."""


class _Broken(Exception):
    """The connection ended before the file did."""


def download(url: str, target: Path) -> None:
    """Download a file to `target`. A part left by a broken download (`NAME.part`) is continued.

    Callers hold a lock where several processes may download the same file.

    Raises:
        DownloadError: no network, an error of the server, a connection that keeps breaking, a full disk.
    """
    part = target.with_name(target.name + ".part")
    reason = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            try:
                _continue(url, part)
                os.replace(part, target)
                _validator(part).unlink(missing_ok=True)
                return
            except (_Broken, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                reason = f"the connection broke at {_size(part):,} bytes: {error}; run again to continue there"
                log.info("%s: %s", url, reason)
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = f"no connection: {error.reason}"
    except OSError as error:
        reason = str(error)
    raise DownloadError(f"cannot download {url} ({reason}); or download it by hand and put it at {target}")


def _continue(url: str, part: Path) -> None:
    """One connection: append to the part what is missing, or start over where the server or its file demands it."""
    have = _size(part)
    try:
        response = urllib.request.urlopen(_request(url, part, have), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing follows what we have
            raise
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return  # whole, only not yet renamed
        part.unlink()  # longer than the file now is
        _continue(url, part)
        return
    with response:
        resumed = response.status == 206
        start, total = _extent(response, have if resumed else 0)
        if start != (have if resumed else 0):
            part.unlink(missing_ok=True)
            raise _Broken(f"the server sent bytes from {start:,} on")
        etag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
        _validator(part).write_text(validator, encoding="utf-8")
        with part.open("ab" if resumed else "wb") as file, _progress() as progress:
            task = progress.add_task(url.rpartition("/")[2], total=total, completed=start)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    if total is not None and _size(part) != total:
        raise _Broken(f"{total:,} were announced")


def _request(url: str, part: Path, have: int) -> urllib.request.Request:
    headers = {"User-Agent": "segclip", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _validator(part).is_file() and (validator := _validator(part).read_text(encoding="utf-8")):
            headers["If-Range"] = validator  # another file by now: the server sends it from its start
    return urllib.request.Request(url, headers=headers)


def _extent(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """First byte that the response holds, and the length of the whole file where the server says it."""
    if response.status == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start = span.partition("-")[0]
        if not start.isdigit():
            raise _Broken("the server sent a part without saying which")
        return int(start), int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return have, int(length) if length.isdigit() else None


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
