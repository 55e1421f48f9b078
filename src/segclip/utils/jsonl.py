"""A file of JSON lines about one job, from which a broken run goes on. Its first line says which job."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


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
    """Each line after the first, and where in the file it starts, in bytes.

    Args:
        file: may be missing: then there is none.
        job: as JSON has it.
        what: a job is, for the error.
        remedy: what to do about a file of another job.

    Raises:
        ValueError: the file is of another job.
    """
    if not file.exists():
        return
    with file.open("rb") as lines:
        first = lines.readline()
        if first.endswith(b"\n") and (found := json.loads(first).get("job")) != job:
            changed = sorted(k for k in job if not isinstance(found, dict) or found.get(k) != job[k])
            raise ValueError(f"{file}: holds photos of another {what} (other {', '.join(changed)}); {remedy}")
        start = len(first)
        for text in lines:
            if text.endswith(b"\n"):
                yield start, json.loads(text)
            start += len(text)


def encode_line(line: dict[str, Any]) -> bytes:
    """A line as it is written."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
