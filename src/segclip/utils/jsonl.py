"""A file of JSON lines about one job, from which a broken run goes on. Its first line says which job."""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def start_lines(file: Path, job: dict[str, Any]) -> None:
    """Make the file, or mend the end of the one that a killed run left."""
    if file.exists():
        with file.open("r+b") as opened:
            # A killed process may have left half a line.
            opened.truncate(sum(len(line) for line in opened if line.endswith(b"\n")))
    if not file.exists() or not file.stat().st_size:
        append_lines(file, [{"job": job}])


def append_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write lines at the end."""
    with file.open("ab") as opened:
        opened.write(b"".join(map(encode_line, lines)))


def read_lines(file: Path, job: dict[str, Any], what: str, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line after the first, and where in the file it starts, in bytes; a damaged one is left out, and named.

    Args:
        file: may be missing: then there is none.
        job: as JSON has it.
        what: a job is, for the error.
        remedy: what to do about a file of another job, or one whose job cannot be read.

    Raises:
        ValueError: the file is of another job, or does not say of which.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        first = lines.readline()
        if first.endswith(b"\n"):
            _check_job(file, decode_line(first), job, what, remedy)
        start = len(first)
        for number, text in enumerate(lines, start=2):
            if text.endswith(b"\n"):  # or a killed process wrote half of it
                if (line := decode_line(text)) is None:
                    log.warning("%s: line %d is damaged; what it was about is done again", file, number)
                else:
                    yield start, line
            start += len(text)


def _check_job(file: Path, first: dict[str, Any] | None, job: dict[str, Any], what: str, remedy: str) -> None:
    if first is None or not isinstance(found := first.get("job"), dict):
        raise ValueError(f"{file}: its first line does not say of which {what} it is; {remedy}")
    if found != job:
        changed = sorted(k for k in found | job if k not in found or k not in job or found[k] != job[k])
        raise ValueError(f"{file}: holds photos of another {what} (other {', '.join(changed)}); {remedy}")


def decode_line(text: bytes | str) -> dict[str, Any] | None:
    """What a line says; None where it is no JSON object."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested without end
        return None
    return line if isinstance(line, dict) else None


def encode_line(line: dict[str, Any]) -> bytes:
    """A line as it is written."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
