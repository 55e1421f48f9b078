"""Damage to bytes and to values: what is done to valid files."""

import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

EXTREMES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PNG = b"\x89PNG\r\n\x1a\n"
DEEP = 600  # lists in lists: JSON readers take them, and what writes them again may not

# In place of a value of JSON.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 255, 65535, 10**6, 10**9, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "x", "x" * 3000, "\ud800", "\0", "\x1b[2J", "١", "²", [], {}, [None], {"a": {}}),
    *("../secret", "/etc/hostname", "NaN", "1e9", "clip", "dinov2", "gelu"),
)


def mutate(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """One to three kinds of damage; `other` is another valid file, of which parts may come."""
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        data = generator.choice(WAYS)(data, other, generator)
    return data


def _flip(data: bytes, other: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8, 64)) if changed else 0):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _flip_early(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """Where headers are."""
    return _flip(data[:256], other, generator) + data[256:]


def _cut(data: bytes, _: bytes, generator: random.Random) -> bytes:
    return data[: generator.randrange(len(data) + 1)]


def _splice(data: bytes, other: bytes, generator: random.Random) -> bytes:
    return data[: generator.randrange(len(data) + 1)] + other[generator.randrange(len(other) + 1) :]


def _length(data: bytes, _: bytes, generator: random.Random) -> bytes:
    """Another whole number, of any size and order, somewhere, rather at the beginning."""
    sizes = [size for size in "BHIQ" if struct.calcsize(size) < len(data)]
    if not sizes:
        return data
    kind = generator.choice(sizes)
    size = struct.calcsize(kind)
    end = len(data) - size
    place = generator.randrange(generator.choice((min(64, end), min(512, end), end)) + 1)
    value = generator.choice(EXTREMES) if generator.random() < 0.8 else generator.randrange(1 << 8 * size)
    number = struct.pack(generator.choice("<>") + kind, value % (1 << 8 * size))
    return data[:place] + number + data[place + size :]


def _move(data: bytes, _: bytes, generator: random.Random) -> bytes:
    """A part taken out, and put elsewhere, twice, or nowhere."""
    a, b, c = sorted(generator.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + generator.choice((data[b:c] + data[a:b], data[a:b] * 2, b"")) + data[c:]


def _fill(data: bytes, _: bytes, generator: random.Random) -> bytes:
    a = generator.randrange(len(data) + 1)
    length = generator.choice((1, 4, 64, 1024))
    filling = generator.choice((bytes(length), b"\xff" * length, generator.randbytes(length)))
    return data[:a] + filling + data[a + generator.choice((0, length)) :]


WAYS: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    *(_flip, _flip_early, _cut, _splice, _length, _length, _move, _fill),
)


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The kinds and contents of a whole PNG's chunks."""
    chunks, start = [], len(PNG)
    while start < len(data):
        (size,) = struct.unpack(">I", data[start : start + 4])
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + size]))
        start += 12 + size
    return chunks


def join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, with right checksums."""
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return PNG + b"".join(parts)


def mutate_png(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """Chunks swapped, left out, doubled, filled, or with other content, whose checksums are right nevertheless."""
    chunks = png_chunks(data)
    at = generator.randrange(len(chunks))
    kind, content = chunks[at]
    match generator.randrange(7):
        case 0:
            to = generator.randrange(len(chunks))
            chunks[at], chunks[to] = chunks[to], chunks[at]
        case 1:
            del chunks[at]
        case 2:
            chunks.insert(generator.randrange(len(chunks) + 1), chunks[at])
        case 3:  # width, height, bits, colours, compression, filter, interlacing
            header = bytearray(chunks[0][1])
            field = generator.choice((0, 4, 8, 9, 10, 11, 12))
            size = 4 if field < 8 else 1
            value = generator.choice((*EXTREMES, 5, 16, 1000, 10000, 14000, 20000)) % (1 << 8 * size)
            header[field : field + size] = value.to_bytes(size, "big")
            chunks[0] = (chunks[0][0], bytes(header))
        case 4:  # what takes much more memory than it has bytes
            bomb = b"x\0\0" + zlib.compress(bytes(generator.choice((1 << 10, 1 << 22, 1 << 24))), 9)
            chunks.insert(generator.randrange(1, len(chunks)), (generator.choice((b"iCCP", b"zTXt")), bomb))
        case 5:
            name = generator.choice((b"tEXt", b"iTXt", b"eXIf", b"gAMA", b"cHRM", b"tRNS", b"PLTE", b"acTL", b"fcTL"))
            chunks.insert(generator.randrange(len(chunks) + 1), (name, generator.randbytes(generator.randrange(64))))
        case _:
            chunks[at] = (kind, mutate(content, other, generator))
    return join_png(chunks)


def mutate_tiff(data: bytes, generator: random.Random) -> bytes:
    """Another tag, type, count or value of an entry of the first directory: of a TIFF, or of EXIF in any file."""
    starts = [start for mark in (b"II*\0", b"MM\0*") if (start := data.find(mark)) >= 0]
    if not starts:
        return data
    start, changed = min(starts), bytearray(data)
    order = "<" if data[start : start + 2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}I", data, start + 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start + first)
        place = start + first + 2 + 12 * generator.randrange(max(entries, 1))
        match generator.randrange(4):
            case 0:
                struct.pack_into(f"{order}H", changed, place, generator.choice((0x112, 0x10F, 0x8769, 256, 259, 273)))
            case 1:
                struct.pack_into(f"{order}H", changed, place + 2, generator.choice((*range(19), 129, 255, 65535)))
            case 2:
                struct.pack_into(f"{order}I", changed, place + 4, generator.choice(EXTREMES))
            case _:
                struct.pack_into(f"{order}I", changed, place + 8, generator.choice(EXTREMES))
    except struct.error:
        return data
    return bytes(changed)


def mutate_segments(data: bytes, generator: random.Random) -> bytes:
    """A JPEG's segments swapped, left out, doubled, or of another kind; what is no JPEG stays as it is."""
    segments, start = [], 2
    while data[:2] == b"\xff\xd8" and data[start : start + 1] == b"\xff" and data[start + 1] != 0xDA:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        segments.append(data[start:end])
        start = end
    if not segments:
        return data
    at = generator.randrange(len(segments))
    match generator.randrange(4):
        case 0:
            generator.shuffle(segments)
        case 1:
            del segments[at]
        case 2:
            segments.insert(at, segments[at])
        case _:
            segments[at] = b"\xff" + bytes([generator.randrange(0xC0, 0xFF)]) + segments[at][2:]
    return data[:2] + b"".join(segments) + data[start:]


def mutate_value(value: Any, generator: random.Random) -> Any:
    """A value of JSON in which one value, at any depth, is another, missing, or double."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        name = generator.choice(sorted(value))
        match generator.randrange(12):
            case 0:
                return {key: part for key, part in value.items() if key != name}
            case 1:
                return {**value, generator.choice(("unknown", "", "x" * 500, "\ud800")): value[name]}
            case _:
                return {**value, name: mutate_value(value[name], generator)}
    if isinstance(value, list) and value and generator.random() < 0.9:
        at = generator.randrange(len(value))
        match generator.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], mutate_value(value[at], generator), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and generator.random() < 0.3:
        return value * generator.choice((2, -1, 1000)) + generator.choice((-1, 0, 1))
    return generator.choice(VALUES)


def nested(depth: int = DEEP) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value
