"""What every source of `segclip prepare` yields: pairs, and where their photos lie. No torch: workers import this.

What comes from a source is checked here and nowhere else: paths (`to_path`), captions (`to_captions`), further fields
(`to_meta`), JSON (`parse_json`). What does not pass raises ValueError. A source makes a pair of it (`bad_pair`), which
is reported and counted, and goes on; it stops only where the rest of a file cannot be told from what is broken.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol, runtime_checkable

from segclip.utils.messages import brief

# Names under which data sets write a photo's path and its captions; the first that is there counts.
PHOTO_FIELDS = ("image", "photo", "path", "file_name", "filename", "filepath", "image_path", "file")
CAPTION_FIELDS = ("captions", "caption", "title", "text", "sentences", "sentence")
MAX_DEPTH = 64  # of values in values; where workers get them, and where shards are read, a few hundred are too many
MOST_BYTES = 1 << 30  # of a photo's file
FETCH = "it lists URLs, not files: fetch the photos with img2dataset first, and give the folder that it wrote"


@runtime_checkable
class PhotoFile(Protocol):
    """A photo's file, wherever it lies; a `Path` is one. It goes to worker processes."""

    def read_bytes(self) -> bytes:
        """Its content. Raises OSError where it is missing or cannot be read."""
        ...


@dataclass(frozen=True)
class Pair:
    """A photo and its captions, as a source has them; the photo may be missing or broken, which only reading it tells.

    Attributes:
        name: what a report calls it: the path as the source writes it, "00000.tar/000012.jpg", "row 17".
        photo: its file; None where the source has captions but no photo for them.
        captions: stripped, none empty; () where there is none.
        meta: further fields of the source, JSON values.
        why_bad: not empty where the pair cannot be used: the reason.
        read: share of the source that was read up to here, 0-1.
    """

    name: str
    photo: PhotoFile | None
    captions: tuple[str, ...]
    meta: dict[str, Any]
    why_bad: str = ""
    read: float = 0.0


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` (file and line, member or entry) before the message of a ValueError that is raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_file(path: Path) -> bytes:
    """A photo's file. Raises OSError where it is missing, no regular file (a FIFO never ends), or too large."""
    if path.exists() and not path.is_file():
        raise OSError("a folder, FIFO or device, and no file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise OSError(f"{size} bytes; at most {MOST_BYTES} are read")
    return path.read_bytes()


def bad_pair(name: str, error: ValueError, read: float = 0.0) -> Pair:
    """The pair that stands for what cannot be used of a source; `name` is where it is, as "pairs.jsonl, line 3"."""
    return Pair(name, None, (), {}, why_bad=str(error), read=read)


def find_photo(names: Sequence[str]) -> str:
    """The photo's field among `names`; ValueError shows what is there and what is expected."""
    found = _first(PHOTO_FIELDS, names)
    if found is None:
        if any(name.lower() in ("url", "image_url") or is_url(name) for name in names):
            raise ValueError(f"no photo among {_join(names)}; {FETCH}")
        raise ValueError(f"no photo among {_join(names)}; expected one of {', '.join(PHOTO_FIELDS)}")
    return found


def find_captions(names: Sequence[str]) -> str:
    """The captions' field among `names`; ValueError shows what is there and what is expected."""
    found = _first(CAPTION_FIELDS, names)
    if found is None:
        raise ValueError(f"no captions among {_join(names)}; expected one of {', '.join(CAPTION_FIELDS)}")
    return found


def to_captions(value: Any) -> tuple[str, ...]:
    """Captions of a text, a list of texts, or a list of {"raw": text}; stripped, empty ones dropped.

    Raises:
        ValueError: anything else, or text that UTF-8 cannot hold.
    """
    if value is None:
        return ()
    texts = [part.get("raw") if isinstance(part, dict) else part for part in _as_list(value)]
    captions = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"captions {brief(value)}; expected a text or a list of texts")
        if not _is_unicode(text):
            raise ValueError(f"captions {brief(value)} have half a character (a lone surrogate); write them anew")
        captions.append(text.strip())
    return tuple(filter(None, captions))


def to_path(value: Any) -> str:
    """Check a photo's path, which must stay inside the photos' folder.

    Raises:
        ValueError: no text, empty, a URL, absolute (also as Windows writes it), or with a `..` component.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"photo {brief(value)}; expected its path, as text")
    if is_url(value):
        raise ValueError(f"photo {brief(value)}; {FETCH}")
    if is_unsafe(value):
        raise ValueError(
            f"photo {brief(value)} leaves the photos' folder (absolute, or with `..`); "
            "give paths relative to the photos' folder; --photos names it"
        )
    return value


def is_unsafe(path: str) -> bool:
    """Whether a path is absolute, leads up, or is no file's name, on any system."""
    windows = PureWindowsPath(path)  # takes / and \ both
    return bool(windows.drive or windows.root) or ".." in windows.parts or "\0" in path or not _is_unicode(path)


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def to_meta(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A value that JSON in UTF-8 can hold: NaN and infinity, which it cannot, become None.

    Raises:
        ValueError: text that UTF-8 cannot hold, or values in values, deeper than `depth`.
    """
    if isinstance(value, dict | list | tuple) and not depth:
        raise ValueError(f"values in values, more than {MAX_DEPTH} deep; leave them out")
    if isinstance(value, dict):
        return {to_meta(key, depth - 1): to_meta(part, depth - 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_meta(part, depth - 1) for part in value]
    if isinstance(value, str) and not _is_unicode(value):
        raise ValueError(f"{brief(value)} has half a character (a lone surrogate); write it anew")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_json(text: str) -> Any:
    """A JSON value; NaN, which is no JSON but which users of pandas write, becomes None.

    Raises:
        ValueError: broken, nested too deep, or with a number that is too large.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_parse_float)
    except (ValueError, RecursionError) as error:  # RecursionError: nested some thousands deep
        raise ValueError(f"broken JSON ({error})") from None


def decode_text(raw: bytes, line: int = 1) -> str:
    """Text of UTF-8, with or without a byte order mark, that begins at line `line` of a file.

    Raises:
        ValueError: not UTF-8; the message begins with the line.
    """
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        byte = error.object[error.start]
        raise ValueError(f"line {line}: not UTF-8 text (byte 0x{byte:02x}); save it as UTF-8") from None


def check_decoded(text: str) -> None:
    """Raise ValueError where text that was decoded with `surrogateescape` was not UTF-8."""
    if not text.isascii() and (found := _UNDECODED.search(text)):
        raise ValueError(f"not UTF-8 text (byte 0x{ord(found[0]) - 0xDC00:02x}); save it as UTF-8")


def _first(fields: Sequence[str], names: Sequence[str]) -> str | None:
    return next((field for field in fields if field in names), None)


def _join(names: Sequence[str]) -> str:
    return ", ".join(map(brief, names)) or "nothing"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text)


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text:.100} is too large")
    return number


_UNDECODED = re.compile("[\udc80-\udcff]")
