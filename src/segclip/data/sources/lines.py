"""JSON lines and tables (CSV, TSV) of photo paths and captions, streamed. No torch: workers import this."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from segclip.data.sources.pairs import (
    CAPTION_FIELDS,
    Pair,
    bad_pair,
    check_decoded,
    find_captions,
    find_photo,
    located,
    parse_json,
    to_captions,
    to_meta,
    to_path,
)

LONGEST_FIELD = 1 << 27  # letters of a table's; the library's own limit is a long caption's
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSONL_SUFFIXES = (".jsonl", ".ndjson")
EXAMPLE = '{"image": "a/1.jpg", "captions": ["a cat", "a pet"]}'


def read_jsonl(path: Path, photos: Path) -> Iterator[Pair]:
    """Pairs of a JSON-lines file: a line an object with a photo's path and its captions.

    Consecutive lines of one photo are one pair, with all their captions and the first one's further fields. A line that
    is no such object, or whose path leaves `photos`, is a bad pair.

    Raises:
        ValueError: the file's fields have other names; it names file and line.
    """
    return _join(_jsonl_pairs(path, photos))


def read_table(path: Path, photos: Path) -> Iterator[Pair]:
    """Pairs of a table with a header row; consecutive rows of one photo are one pair, as in `read_jsonl`.

    A row that does not fit the header, or whose path leaves `photos`, is a bad pair.

    Raises:
        ValueError: the header names no photo or no captions, or quotes are broken; it names file and line.
    """
    return _join(_table_pairs(path, photos))


def _join(pairs: Iterator[Pair]) -> Iterator[Pair]:
    for _, same in groupby(pairs, key=lambda pair: pair.name):
        first, *rest = same
        captions = first.captions + tuple(caption for pair in rest for caption in pair.captions)
        yield replace(first, captions=captions, read=rest[-1].read) if rest else first


def _jsonl_pairs(path: Path, photos: Path) -> Iterator[Pair]:
    size, first = path.stat().st_size, True
    for number, end, text in _lines(path):
        if not text.strip():
            continue
        name, read = f"{path.name}, line {number}", min(1.0, end / size)
        try:
            record = _parse_object(text)
        except ValueError as error:
            yield bad_pair(name, error, read)
            continue
        if first:  # a file of other names is told at once; later lines may lack captions
            with located(f"{path}, line {number}"):
                _check_names(list(record))
            first = False
        yield _to_pair(record, photos, name, read)


def _parse_object(text: str) -> dict[str, Any]:
    check_decoded(text)
    try:
        record = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{error}; expected an object a line, as {EXAMPLE}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; expected an object a line, as {EXAMPLE}")
    return record


def _check_names(names: Sequence[str]) -> None:
    find_photo(names)
    find_captions(names)


def _to_pair(record: dict[str, Any], photos: Path, line: str, read: float) -> Pair:
    """The pair of a line, or a bad one that `line` names."""
    try:
        name = to_path(record.pop(find_photo(list(record))))
        captions = next((to_captions(record.pop(field)) for field in CAPTION_FIELDS if field in record), ())
        return Pair(name, photos / name, captions, to_meta(record), read=read)
    except ValueError as error:
        return bad_pair(line, error, read)


def _table_pairs(path: Path, photos: Path) -> Iterator[Pair]:
    size, position = path.stat().st_size, 0

    def texts() -> Iterator[str]:
        nonlocal position
        for _, position, text in _lines(path):  # noqa: B007 (it is read below)
            yield text

    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    # strict: a quote that is never closed would swallow the rows after it without a word
    rows = csv.reader(texts(), delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    header: list[str] | None = None
    while (cells := _next_row(rows, path)) is not None:
        if not any(map(str.strip, cells)):
            continue
        if header is None:
            with located(f"{path}, line {rows.line_num}"):
                header = _check_header(cells)
            continue
        name, read = f"{path.name}, line {rows.line_num}", min(1.0, position / size)
        try:
            record = _fit(header, cells)
        except ValueError as error:
            yield bad_pair(name, error, read)
            continue
        yield _to_pair(record, photos, name, read)


def _next_row(rows: Any, path: Path) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {rows.line_num}: broken table ({error}); a text with quotes, delimiters or line breaks "
            'is written in quotes, and a quote inside them twice: "a ""red"" cat"'
        ) from None


def _check_header(cells: Sequence[str]) -> list[str]:
    check_decoded("".join(cells))
    header = [cell.strip() for cell in cells]
    try:
        _check_names(header)
    except ValueError as error:
        raise ValueError(f"the first row must be a header: {error}") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"columns named twice: {', '.join(twice)}; give each its own name (a row for each caption)")
    return header


def _fit(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    check_decoded("".join(cells))
    if len(cells) != len(header):
        columns = ", ".join(header)
        raise ValueError(f"{len(cells)} cells for {len(header)} columns ({columns}); quote texts with delimiters")
    return dict(zip(header, cells, strict=True))


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Number, end in bytes, and text of each line; bytes that are not UTF-8 as `check_decoded` finds them."""
    end = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            end += len(raw)
            yield number, end, raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
