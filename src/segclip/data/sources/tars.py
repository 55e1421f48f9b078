"""Webdataset tars as img2dataset writes them: photos and captions, found without reading the photos. No torch."""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from segclip.data.photos import PHOTO_SUFFIXES
from segclip.data.sources.pairs import Pair, decode_text, is_unsafe, shorten, to_captions, to_meta

MAX_TEXT = 1 << 20  # bytes; a caption or its record that is larger is none
MAX_PADDING = 1 << 20  # bytes of zeros at a tar's end: tar pads to 10 KiB, a cut download may be all zeros

# Webdataset's rule: the key ends at the first dot of the last path component. Names without a dot, or that begin with
# one, belong to no sample.
_KEY = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class TarMember:
    """A photo inside a tar: its bytes are [offset, offset + size)."""

    tar: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """The photo's file. Raises OSError where it cannot be read."""
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
    tars = sorted(file for file in path.glob("*.tar") if file.is_file()) if path.is_dir() else [path]
    if not tars:
        raise ValueError(f"{path}: no *.tar in this folder; give the folder that img2dataset wrote (webdataset format)")
    return tars


def read_tars(tars: list[Path]) -> Iterator[Pair]:
    """Pairs of tars, in their order; all tars are checked for being cut before the first pair.

    A sample is consecutive members of one key: a photo, `.txt` with its caption, or `.json` with `caption`.
    `meta` has the `url` of the `.json`.

    Raises:
        ValueError: a tar that is cut or damaged, a member whose name leaves the folder, a link or device.
    """
    for tar in tars:
        _check_whole(tar)
    sizes = [tar.stat().st_size for tar in tars]
    before = 0
    for tar, size in zip(tars, sizes, strict=True):
        for end, pair in _read_tar(tar):
            yield Pair(*pair, read=(before + min(end, size)) / sum(sizes))
        before += size


_Parts = tuple[str, TarMember | None, tuple[str, ...], dict[str, Any], str]  # a Pair's fields but `read`


def _check_whole(tar: Path) -> None:
    size = tar.stat().st_size
    if size == 0 or size % tarfile.BLOCKSIZE:
        why = f"its size, {size} bytes, is no multiple of {tarfile.BLOCKSIZE}" if size else "empty"
        raise _damaged(tar, why, 0)
    with tar.open("rb") as file:
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        if any(file.read()) or size < 2 * tarfile.BLOCKSIZE:
            raise _damaged(tar, "its end mark is missing", 0)


def _read_tar(tar: Path) -> Iterator[tuple[int, _Parts]]:
    samples = 0
    try:
        with tar.open("rb") as file:
            for key, members in groupby(_members(file, tar), key=lambda found: found[0]):
                parts = list(members)
                samples += 1
                yield parts[-1][2].offset_data + parts[-1][2].size, _to_pair(file, tar, key, parts)
    except tarfile.TarError as error:
        raise _damaged(tar, str(error), samples) from None


def _members(file: BinaryIO, tar: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension and header of each member that belongs to a sample."""
    with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # it keeps every header  # pyright: ignore[reportAttributeAccessIssue]
            if member.isdir():
                continue
            _check_member(tar, member)
            if parts := _KEY.fullmatch(member.name):
                yield parts[1], parts[2].lower(), member
        _check_end(file, archive.offset)


def _check_member(tar: Path, member: tarfile.TarInfo) -> None:
    if is_unsafe(member.name):
        raise ValueError(
            f"{tar}, member {shorten(member.name)}: leaves the folder (absolute, or with `..`); "
            "such a tar is not read: make it again"
        )
    if not member.isreg() or member.issparse():
        raise ValueError(
            f"{tar}, member {shorten(member.name)}: a link, device or sparse file; such a tar is not read: "
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


def _to_pair(file: BinaryIO, tar: Path, key: str, parts: list[tuple[str, str, tarfile.TarInfo]]) -> _Parts:
    photos = [member for _, extension, member in parts if f".{extension}" in PHOTO_SUFFIXES]
    name = f"{tar.name}/{(photos or [member for *_, member in parts])[0].name}"
    photo = TarMember(tar, photos[0].offset_data, photos[0].size) if photos else None
    try:
        if len(photos) > 1:
            raise ValueError(f"{len(photos)} photos of one key, {key}")
        captions, meta = _read_texts(file, [(extension, member) for _, extension, member in parts])
    except ValueError as error:
        return name, photo, (), {}, str(error)
    return name, photo, captions, meta, ""


def _read_texts(file: BinaryIO, parts: Iterable[tuple[str, tarfile.TarInfo]]) -> tuple[tuple[str, ...], dict[str, Any]]:
    texts = {extension: _read_text(file, member) for extension, member in parts if extension in ("txt", "json")}
    record = _parse_record(texts["json"]) if "json" in texts else {}
    captions = to_captions(texts["txt"] if "txt" in texts else record.get("caption"))
    return captions, {"url": to_meta(record["url"])} if "url" in record else {}


def _read_text(file: BinaryIO, member: tarfile.TarInfo) -> str:
    if member.size > MAX_TEXT:
        raise ValueError(f"{member.name} has {member.size} bytes; at most {MAX_TEXT} are read")
    file.seek(member.offset_data)
    try:
        return decode_text(file.read(member.size))
    except ValueError as error:
        raise ValueError(f"{member.name}, {error}") from None


def _parse_record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its .json is broken ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"its .json is a {type(record).__name__}, not an object")
    return record
