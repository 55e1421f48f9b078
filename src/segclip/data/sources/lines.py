"""JSON lines and tables (CSV, TSV) of photo paths and captions, streamed. No torch: workers import this."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from segclip.data.sources.pairs import (
    CAPTION_FIELDS,
    Pair,
    decode_text,
    find_captions,
    find_photo,
    located,
    to_captions,
    to_meta,
    to_path,
)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSONL_SUFFIXES = (".jsonl", ".ndjson")
EXAMPLE = '{"image": "a/1.jpg", "captions": ["a cat", "a pet"]}'


def read_jsonl(path: Path, photos: Path) -> Iterator[Pair]:
    """Pairs of a JSON-lines file: a line an object with a photo's path and its captions.

    Consecutive lines of one photo are one pair, with all their captions and the first one's further fields.

    Raises:
        ValueError: a line is not such an object, or its path leaves `photos`; it names file and line.
    """
    return _join(_jsonl_pairs(path, photos))


def read_table(path: Path, photos: Path) -> Iterator[Pair]:
    """Pairs of a table with a header row; consecutive rows of one photo are one pair, as in `read_jsonl`.

    Raises:
        ValueError: the header names no photo or no captions, or a row does not fit it; it names file and line.
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
        with located(f"{path}, line {number}"):
            record = _parse_object(text)
            if first:  # a file of other names is told at once; later lines may lack captions
                _check_names(list(record))
            pair = _to_pair(record, photos, min(1.0, end / size))
        yield pair
        first = False


def _parse_object(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text, parse_constant=lambda _: None)  # NaN is no JSON, but pandas' users write it
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"broken JSON ({error}); expected an object a line, as {EXAMPLE}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; expected an object a line, as {EXAMPLE}")
    return record


def _check_names(names: Sequence[str]) -> None:
    find_photo(names)
    find_captions(names)


def _to_pair(record: dict[str, Any], photos: Path, read: float) -> Pair:
    name = to_path(record.pop(find_photo(list(record))))
    captions = next((to_captions(record.pop(field)) for field in CAPTION_FIELDS if field in record), ())
    return Pair(name, photos / name, captions, {key: to_meta(value) for key, value in record.items()}, read=read)


def _table_pairs(path: Path, photos: Path) -> Iterator[Pair]:
    size, position = path.stat().st_size, 0

    def texts() -> Iterator[str]:
        nonlocal position
        for _, position, text in _lines(path):  # noqa: B007 (it is read below)
            yield text

    # strict: a quote that is never closed would swallow the rows after it without a word
    rows = csv.reader(texts(), delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    header: list[str] | None = None
    while (cells := _next_row(rows, path)) is not None:
        if not any(map(str.strip, cells)):
            continue
        with located(f"{path}, line {rows.line_num}"):
            if header is None:
                header = _check_header(cells)
                continue
            pair = _to_pair(_fit(header, cells), photos, min(1.0, position / size))
        yield pair


def _next_row(rows: Any, path: Path) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {rows.line_num}: broken table ({error}); a text with quotes, delimiters or line breaks "
            'is written in quotes, and a quote inside them twice: "a ""red"" cat"'
        ) from None


def _check_header(cells: Sequence[str]) -> list[str]:
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
    if len(cells) != len(header):
        columns = ", ".join(header)
        raise ValueError(f"{len(cells)} cells for {len(header)} columns ({columns}); quote texts with delimiters")
    return dict(zip(header, cells, strict=True))


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Number, end in bytes, and text of each line."""
    end = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            end += len(raw)
            try:
                text = decode_text(raw, number)
            except ValueError as error:
                raise ValueError(f"{path}, {error}") from None
            yield number, end, text
