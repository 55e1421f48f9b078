"""Webdataset tars as img2dataset writes them: photos and captions, found without reading the photos. No torch.

The headers of a tar are read twice: first for which keys have their members apart and which have photos, in a few
bytes a key, then for the samples.
"""

import logging
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from segclip.data.photos import PHOTO_SUFFIXES
from segclip.data.sources.pairs import (
    CAPTION_FIELDS,
    MOST_BYTES,
    Pair,
    decode_text,
    is_unsafe,
    parse_json,
    to_captions,
    to_meta,
)
from segclip.utils.messages import brief

MAX_TEXT = 1 << 20  # bytes; a caption or its record that is larger is none
MAX_PADDING = 1 << 20  # bytes of zeros at a tar's end: tar pads to 10 KiB, a cut download may be all zeros
# What photos are called; whether one can be read, its content tells.
IMAGES = frozenset(PHOTO_SUFFIXES)
TEXTS = frozenset([".txt", ".json"])
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
COMPRESSED_SUFFIXES = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarMember:
    """A photo inside a tar: its bytes are [offset, offset + size)."""

    tar: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """The photo's file. Raises OSError where it cannot be read, or is too large."""
        if self.size > MOST_BYTES:
            raise OSError(f"{self.size} bytes; at most {MOST_BYTES} are read")
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            photo = file.read(self.size)
        if len(photo) < self.size:
            raise OSError(f"{self.tar}: ends inside a photo; it was changed while it was read")
        return photo


def list_tars(path: Path) -> list[Path]:
    """The tars of a folder, sorted by name; or the one tar that `path` is.

    Raises:
        ValueError: there is none.
    """
    if not path.is_dir():
        return [path]
    tars = sorted(file for file in path.iterdir() if file.suffix.lower() == ".tar" and file.is_file())
    if not tars:
        raise ValueError(
            f"{path}: no *.tar in this folder; give the folder that img2dataset wrote (webdataset format), with its "
            "tars not compressed"
        )
    return tars


def find_compressed(folder: Path) -> list[Path]:
    """Compressed tars in a folder, which are not read."""
    return sorted(file for file in folder.iterdir() if file.name.lower().endswith(COMPRESSED_SUFFIXES))


def read_tars(tars: list[Path]) -> Iterator[Pair]:
    """Pairs of tars, in their order; all tars are checked for being cut before the first pair.

    A sample is the members of one key, which is their name up to its last dot: a photo, `.txt` with its caption, or
    `.json` with a field of captions. Samples whose members are not one after the other come last. `meta` has the `url`
    of the `.json`. KEY.depth.png, KEY.cls.txt and the like, where KEY has a photo, are further fields of its sample.

    Raises:
        ValueError: a tar that is cut, damaged or compressed, a member whose name leaves the folder, a link or device.
    """
    for tar in tars:
        _check_whole(tar)
    sizes = [tar.stat().st_size for tar in tars]
    before = 0
    others: Counter[str] = Counter()
    for tar, size in zip(tars, sizes, strict=True):
        for end, pair in _read_tar(tar, others):
            yield Pair(*pair, read=(before + min(end, size)) / sum(sizes))
        before += size
    for what, count in others.items():
        logger.warning("%d members of the tars are %s", count, what)


_Parts = tuple[str, TarMember | None, tuple[str, ...], dict[str, Any], str]  # a Pair's fields but `read`


class _Member(NamedTuple):
    """A file in a tar: its name up to the last dot, the rest in lower case, and where it is."""

    key: str
    suffix: str
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Layout:
    """What is known of the keys of a tar before its samples are read, as sorted hashes.

    Attributes:
        scattered: of keys with members that are not one after the other.
        photos: of keys that have a photo.
    """

    scattered: np.ndarray
    photos: np.ndarray

    @classmethod
    def scan(cls, file: BinaryIO, tar: Path) -> "_Layout":
        """Read all headers; raises ValueError for a damaged or unsafe tar."""
        runs, photos = array("q"), array("q")
        try:
            for key, members in groupby(_members(file, tar), key=lambda member: member.key):
                if any(
                    [member.suffix in IMAGES for member in members]
                ):  # a list: the damage in a run is before its end
                    photos.append(hash(key))
                runs.append(hash(key))
        except tarfile.TarError as error:
            raise _damaged(tar, str(error), len(runs)) from None
        hashes, counts = np.unique(np.array(runs, dtype=np.int64), return_counts=True)
        return cls(hashes[counts > 1], np.unique(np.array(photos, dtype=np.int64)))

    def is_scattered(self, key: str) -> bool:
        return _contains(self.scattered, key)

    def is_field(self, key: str) -> bool:
        """Whether a key is that of a sample with a photo, and a field of it."""
        start = key.rfind("/") + 1
        dots = [place for place, sign in enumerate(key) if sign == "." and place > start]
        return any(_contains(self.photos, key[:dot]) for dot in dots)


def _contains(hashes: np.ndarray, key: str) -> bool:
    place = int(np.searchsorted(hashes, hash(key))) if len(hashes) else 0
    return place < len(hashes) and int(hashes[place]) == hash(key)


def _check_whole(tar: Path) -> None:
    size = tar.stat().st_size
    with tar.open("rb") as file:
        start = file.read(6)
    for mark, kind in COMPRESSED.items():
        if start.startswith(mark):
            raise ValueError(f"{tar}: compressed by {kind}, whatever its name says; unpack it to a plain tar first")
    if size == 0 or size % tarfile.BLOCKSIZE:
        why = f"its size, {size} bytes, is no multiple of {tarfile.BLOCKSIZE}" if size else "empty"
        raise _damaged(tar, why, 0)
    with tar.open("rb") as file:
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        if any(file.read()) or size < 2 * tarfile.BLOCKSIZE:
            raise _damaged(tar, "its end mark is missing", 0)


def _read_tar(tar: Path, others: Counter[str]) -> Iterator[tuple[int, _Parts]]:
    """Where in the tar each sample ends, and the sample; counts in `others` what is neither photo nor caption."""
    with tar.open("rb") as file:
        layout = _Layout.scan(file, tar)
        file.seek(0)
        for members in _samples(file, tar, layout):
            key, end = members[0].key, max(member.offset + member.size for member in members)
            photos = [member for member in members if member.suffix in IMAGES]
            texts = [member for member in members if member.suffix in TEXTS]
            if not photos and not texts:
                others["neither photos nor captions"] += len(members)
            elif not (photos and texts) and layout.is_field(key):
                others["further fields of samples"] += len(members)
            else:
                for parts in _to_pairs(file, tar, photos, texts):
                    yield end, parts


def _samples(file: BinaryIO, tar: Path, layout: _Layout) -> Iterator[list[_Member]]:
    """The members of each key. What a key has apart is put together, unless it is a whole sample at each place."""
    apart: dict[str, list[_Member]] = {}
    for key, run in groupby(_members(file, tar), key=lambda member: member.key):
        members = list(run)
        suffixes = {member.suffix for member in members}
        if layout.is_scattered(key) and not (suffixes & IMAGES and suffixes & TEXTS):
            apart.setdefault(key, []).extend(members)
        else:
            yield members
    yield from apart.values()


def _members(file: BinaryIO, tar: Path) -> Iterator[_Member]:
    """The files of a tar, without those that macOS adds."""
    with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as archive:
        while (member := _next_header(archive)) is not None:
            archive.members.clear()  # it keeps every header  # pyright: ignore[reportAttributeAccessIssue]
            if member.isdir():
                continue
            _check_member(tar, member)
            folder, slash, base = member.name.rpartition("/")
            if not base.startswith("._"):
                stem, dot, suffix = base.rpartition(".")
                key = folder + slash + (stem if dot else base)
                yield _Member(key, (dot + suffix).lower(), member.name, member.offset_data, member.size)
        _check_end(file, archive.offset)


def _next_header(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except (OSError, tarfile.TarError):
        raise
    except Exception as error:  # numbers of a damaged header that are none
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from None


def _check_member(tar: Path, member: tarfile.TarInfo) -> None:
    if is_unsafe(member.name):
        raise ValueError(
            f"{tar}, member {brief(member.name)}: leaves the folder (absolute, or with `..`); "
            "such a tar is not read: make it again"
        )
    if not member.isreg() or member.issparse():
        raise ValueError(
            f"{tar}, member {brief(member.name)}: a link, device or sparse file; such a tar is not read: "
            "make it again of regular files"
        )


def _check_end(file: BinaryIO, end: int) -> None:
    """tarfile takes a broken header for the end: look whether it was one."""
    file.seek(end)
    rest = file.read(MAX_PADDING + 1)
    if any(rest):
        raise tarfile.ReadError(f"no valid header at byte {end}")
    if len(rest) > MAX_PADDING:
        raise tarfile.ReadError(f"only zeros after byte {end}")


def _damaged(tar: Path, why: str, samples: int) -> ValueError:
    return ValueError(f"{tar}: cut off or damaged ({why}) after {samples} samples; fetch it again or move it away")


def _to_pairs(file: BinaryIO, tar: Path, photos: list[_Member], texts: list[_Member]) -> Iterator[_Parts]:
    """The pair of a key; for each photo of a key with several a bad one."""
    for member in photos or texts[:1]:
        name = f"{tar.name}/{member.name}"
        photo = TarMember(tar, member.offset, member.size) if photos else None
        try:
            for kind, found in (("photos", photos), ("texts of one kind", _same_kind(texts))):
                if len(found) > 1:
                    raise ValueError(f"{len(found)} {kind} of one key, {member.key}; expected one")
            captions, meta = _read_texts(file, texts)
            yield name, photo, captions, meta, ""
        except ValueError as error:
            yield name, photo, (), {}, str(error)


def _same_kind(texts: list[_Member]) -> list[_Member]:
    """The texts of the suffix that most of them have."""
    return max(([text for text in texts if text.suffix == suffix] for suffix in TEXTS), key=len)


def _read_texts(file: BinaryIO, members: list[_Member]) -> tuple[tuple[str, ...], dict[str, Any]]:
    texts = {member.suffix: _read_text(file, member) for member in members}
    record = _parse_record(texts[".json"]) if ".json" in texts else {}
    value = next((record[field] for field in CAPTION_FIELDS if field in record), None)
    captions = to_captions(texts.get(".txt", value))
    return captions, to_meta({"url": record["url"]} if "url" in record else {})


def _read_text(file: BinaryIO, member: _Member) -> str:
    if member.size > MAX_TEXT:
        raise ValueError(f"{member.name} has {member.size} bytes; at most {MAX_TEXT} are read")
    file.seek(member.offset)
    try:
        return decode_text(file.read(member.size))
    except ValueError as error:
        raise ValueError(f"{member.name}, {error}") from None


def _parse_record(text: str) -> dict[str, Any]:
    try:
        record = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its .json: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"its .json is a {type(record).__name__}, not an object")
    return record
