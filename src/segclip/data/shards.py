"""Shards: tars of photos with captions and superpixels, in which every sample can be reached at once.

A folder of shards holds `index.json` (see Index) and, for each shard, NAME-000000.tar, which webdataset reads too, and
NAME-000000.npy, its table: int64 (N,2), where each sample ends in the tar, in bytes, and how many captions it has.
The members of a sample, one after the other: KEY.jpg (or another image format), KEY.json, KEY.superpixels.png.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from filelock import FileLock
from jaxtyping import Int32, Int64
from PIL import Image

from segclip.data.photos import Photo, PhotoError, decode_image
from segclip.data.remote import PLAIN_NAME, is_remote, make_room, read_remote
from segclip.data.superpixels import Method
from segclip.utils.files import atomic, cache_folder
from segclip.utils.messages import brief

INDEX = "index.json"
SUPERPIXELS = "superpixels.png"
VERSION = 1  # of the layout
HEADER = tarfile.BLOCKSIZE  # of a member in a tar; its content is padded to multiples of it
END = bytes(1024)  # of a tar
MOST_INDEX = 1 << 28  # bytes of an index from elsewhere: a million shards
SHA256 = re.compile("[0-9a-f]{64}")
Table = Int64[np.ndarray, "N 2"]


class SampleError(ValueError):
    """A sample of a shard that cannot be used: which, and why."""

    def __init__(self, sample: str, reason: str) -> None:
        super().__init__(f"{sample}: {reason}")
        self.sample, self.reason = sample, reason


@dataclass(frozen=True)
class ShardInfo:
    """A shard in the index; `file` is its name without `.tar` and `.npy`, `bytes` and `sha256` are the tar's."""

    file: str
    samples: int
    captions: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Attributes:
        shards: in their order.
        samples, captions: in all shards.
        superpixels: by which method the stored ones were found; None: there are none.
        side: short side, in pixels, that larger photos were scaled down to.
        seen: photos that the source had.
        left_out: how many of them are not in the shards, by kind.
        duplicates: photos that are in the shards more than once, the first not counted.
        made_from: digest of the source and the settings.
        version: of the layout.
    """

    shards: tuple[ShardInfo, ...]
    samples: int
    captions: int
    superpixels: Method | None
    side: int
    seen: int
    left_out: dict[str, int]
    duplicates: int
    made_from: str
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str) -> "Index":
        """Inverse of `to_json`; `name` is what errors call it."""
        try:
            fields = json.loads(text)
            if fields.get("version") != VERSION:
                raise ValueError(f"its version is {brief(fields.get('version'))}, not {VERSION}")
            _check_fields(fields)
            return cls(**{**fields, "shards": tuple(ShardInfo(**shard) for shard in fields["shards"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name}: no index of shards ({error}); make them anew by segclip prepare") from error


def _check_fields(index: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError where a field of an index, as JSON has it, is not what it must be."""
    for shard in index["shards"]:
        if not (isinstance(shard["file"], str) and PLAIN_NAME.fullmatch(shard["file"])):
            raise ValueError(f"the shard {brief(shard['file'])} is not a plain file name (letters, digits, `_-.`)")
        _check_counts(shard, "samples", "captions", "bytes")
        if not (isinstance(shard["sha256"], str) and SHA256.fullmatch(shard["sha256"])):
            raise ValueError(f"the sha256 {brief(shard['sha256'])} of {shard['file']}; expected 64 hexadecimal digits")
    _check_counts(index, "samples", "captions", "side", "seen", "duplicates")
    _check_counts(index["left_out"], *index["left_out"])
    if index["superpixels"] not in (None, *get_args(Method)):
        raise ValueError(f"superpixels {brief(index['superpixels'])}; expected null, {' or '.join(get_args(Method))}")
    if not isinstance(index["made_from"], str):
        raise ValueError(f"made_from {brief(index['made_from'])}; expected a text")
    if index["samples"] != sum(shard["samples"] for shard in index["shards"]):
        raise ValueError(f"its shards do not have {index['samples']} samples together")


def _check_counts(fields: dict[str, Any], *names: str) -> None:
    for name in names:
        if type(fields[name]) is not int or not 0 <= fields[name] < 1 << 60:  # a bool is an int, too
            raise ValueError(f"{name} {brief(fields[name])}; expected a count")


@dataclass(frozen=True)
class Sample:
    """The files of a sample, as stored."""

    key: str
    photo_file: bytes
    record: dict[str, Any]
    superpixel_file: bytes | None

    @property
    def captions(self) -> list[str]:
        return self.record["captions"]

    def image(self) -> Image.Image:
        """The photo, as a PIL image of mode RGB. Raises SampleError."""
        try:
            return decode_image(self.photo_file, self.key)
        except PhotoError as error:
            raise SampleError(self.key, str(error).removeprefix(f"{self.key}: ")) from error
        except Exception as error:  # of a library, for data that it did not expect
            raise SampleError(self.key, f"cannot be used ({type(error).__name__}: {error})") from error

    def photo(self) -> Photo:
        """The photo, RGB uint8 (H,W,3). Raises SampleError."""
        return np.array(self.image())

    def superpixels(self) -> Int32[np.ndarray, "H W"] | None:
        """Superpixel id of each pixel of the photo; None where the shard has none. Raises SampleError."""
        if self.superpixel_file is None:
            return None
        try:
            with Image.open(io.BytesIO(self.superpixel_file), formats=("PNG",)) as image:
                if len(image.getbands()) != 1:
                    raise ValueError(f"a PNG of mode {image.mode}, not of one number a pixel")
                return np.asarray(image).astype(np.int32)
        except Exception as error:  # damaged data makes Pillow raise nearly anything
            raise SampleError(self.key, f"damaged superpixels ({error})") from error


def pack_sample(key: str, files: dict[str, bytes]) -> bytes:
    """The files of a sample, by suffix, as they stand in a tar; always the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for suffix, data in files.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size, member.mode = len(data), 0o444
            tar.addfile(member, io.BytesIO(data))
        end = tar.offset
    return buffer.getvalue()[:end]


def unpack_sample(data: bytes, name: str) -> Sample:
    """Inverse of `pack_sample`; `name` is what errors call it.

    Raises:
        SampleError: these bytes are no sample.
    """
    key, photo, record, superpixels, start = "", None, None, None, 0
    try:
        while start < len(data):  # by hand: opening a TarFile takes as long as a third of the decoding
            header = tarfile.TarInfo.frombuf(data[start : start + HEADER], "utf-8", "surrogateescape")
            if header.size < 0:
                raise ValueError(f"a member of {header.size} bytes")
            key, _, suffix = header.name.partition(".")
            start += HEADER
            content = data[start : start + header.size]
            start += -(-header.size // HEADER) * HEADER
            if suffix == "json":
                record = json.loads(content)
            elif suffix == SUPERPIXELS:
                superpixels = content
            else:
                photo = content
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise SampleError(name, f"damaged ({error})") from error
    if not (isinstance(record, dict) and _are_texts(record.get("captions"))):
        record = None
    if photo is None or record is None:
        raise SampleError(name, f"no {'photo' if photo is None else 'captions'} in it")
    return Sample(key, photo, record, superpixels)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


class Shards:
    """A folder of shards, here or elsewhere.

    What is elsewhere is fetched shard by shard, when it is first needed, checked against the index, and kept in a
    folder here, from which the processes of a machine all read. It is kept by its sha256: a shard that is made anew
    under its old name is fetched anew.
    """

    def __init__(
        self, address: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None, cache_gb: float = 100.0
    ) -> None:
        """Open the index.

        Args:
            address: a folder; or an address to which `/FILE` is appended: https://, http://, s3://, gs://, hf:// or
                file://.
            cache: where shards from elsewhere are kept; by default `shards` in `cache_folder()`.
            cache_gb: above this size the oldest ones there are deleted, to be fetched again when they are needed.

        Raises:
            ValueError: no index there, or shards that are not as it says.
        """
        for known in (_open, _load_table):  # its files may have been replaced since, under the same names
            known.cache_clear()
        self.address = str(address).rstrip("/") if is_remote(str(address)) else str(address)
        self.cache_bytes = round(cache_gb * 1e9)
        self.remote = is_remote(self.address)
        if self.remote:
            root = Path(cache) if cache else cache_folder() / "shards"
            self.folder = root / hashlib.sha256(self.address.encode()).hexdigest()[:16]
            text = b"".join(read_remote(f"{self.address}/{INDEX}", MOST_INDEX))
        else:
            self.folder = Path(self.address)
            text = self._read_index()
        self.index = Index.from_json(text, f"{self.address}: {INDEX}")
        if not self.index.samples:
            raise ValueError(f"{self.address}: the shards hold no sample; see {INDEX} for what was left out")
        if not self.remote:
            for shard in self.index.shards:
                self._check_files(shard)

    def read(self, shard: int, number: int) -> Sample:
        """Sample `number` of a shard.

        Raises:
            SampleError: it is damaged.
            ValueError: the shard is missing, or cannot be fetched.
        """
        name = f"{self.index.shards[shard].file}.tar, sample {number}"
        ends = self.table(shard)[:, 0]
        start = int(ends[number - 1]) if number else 0
        sample = unpack_sample(_read_at(self.local(shard, ".tar"), start, int(ends[number]) - start), name)
        if sample.superpixel_file is None and self.index.superpixels:
            raise SampleError(name, "no superpixels in it")
        return sample

    def __len__(self) -> int:
        return self.index.samples

    def __getitem__(self, number: int) -> Sample:
        """Sample `number` of all shards in their order; raises like `read`."""
        for shard, info in enumerate(self.index.shards):
            if 0 <= number < info.samples:
                return self.read(shard, number)
            number -= info.samples
        raise IndexError("no such sample")

    def table(self, shard: int) -> Table:
        """Where each sample of a shard ends, and how many captions it has."""
        return _load_table(self.local(shard, ".npy"), self.index.shards[shard])

    def local(self, shard: int, suffix: str) -> Path:
        """The path of a shard's file on this machine, fetched if need be."""
        info = self.index.shards[shard]
        path = self.folder / f"{info.sha256 if self.remote else info.file}{suffix}"
        if self.remote and not path.exists():
            if info.bytes > self.cache_bytes:
                raise ValueError(
                    f"{self.address}: the shard {info.file} has {info.bytes / 1e9:.1f} GB, more than the "
                    f"{self.cache_bytes / 1e9:g} GB that are kept here; make smaller ones, or copy it to a folder"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    make_room(self.folder, self.cache_bytes - info.bytes)
                    self._fetch(info, path)
        return path

    def _fetch(self, shard: ShardInfo, path: Path) -> None:
        name = f"{shard.file}{path.suffix}"
        most = shard.bytes if path.suffix == ".tar" else _table_bytes(shard)
        digest = hashlib.sha256()
        with atomic(path) as temporary:
            with temporary.open("wb") as file:
                for chunk in read_remote(f"{self.address}/{name}", most):
                    file.write(chunk)
                    digest.update(chunk)
            if path.suffix == ".npy":
                _read_table(temporary, shard, f"{self.address}/{name}")  # a damaged one must not be kept
            elif digest.hexdigest() != shard.sha256:
                raise ValueError(f"{self.address}: {name} is not the file that {INDEX} names; copy the shards again")

    def _read_index(self) -> str:
        path = self.folder / INDEX
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise ValueError(
                f"{path}: no such file; give a folder that segclip prepare has made and finished"
            ) from None

    def _check_files(self, shard: ShardInfo) -> None:
        for path, size in ((self.folder / f"{shard.file}.tar", shard.bytes), (self.folder / f"{shard.file}.npy", None)):
            found = path.stat().st_size if path.is_file() else None
            if found is None or size not in (None, found):
                state = "is missing" if found is None else f"has {found} bytes, not {size}"
                raise ValueError(f"{path}: {state}; copy it again, or make the shards anew by segclip prepare")


@lru_cache(maxsize=64)
def _load_table(path: Path, shard: ShardInfo) -> Table:
    return _read_table(path, shard, str(path))


def _read_table(path: Path, shard: ShardInfo, name: str) -> Table:
    """The table of a shard, which must fit its tar; `name` is what errors call it."""
    try:
        if path.stat().st_size > _table_bytes(shard):
            raise ValueError(f"{path.stat().st_size} bytes for {shard.samples} samples")
        table = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: its header must not say what memory it takes
        if (table.shape, table.dtype) != ((shard.samples, 2), np.dtype(np.int64)):
            raise ValueError(f"a table of {table.dtype}, {table.shape}, not of int64, {(shard.samples, 2)}")
        table = np.array(table)
        ends, captions = table.T
        if (np.diff(ends, prepend=0) <= 0).any() or (captions < 0).any():
            raise ValueError("samples that end before they begin")
        if (ends[-1] + len(END), captions.sum()) != (shard.bytes, shard.captions):
            raise ValueError(f"it is of another tar than the one that {INDEX} names")
    except OSError:
        raise
    except Exception as error:  # damaged data makes numpy raise nearly anything
        raise ValueError(f"{name}: damaged ({error}); copy the shards again, or make them anew") from error
    return table


def _table_bytes(shard: ShardInfo) -> int:
    """Bytes that a shard's table has at most."""
    return 1024 + 16 * shard.samples  # numpy's header has 128


_moving = threading.Lock()


@lru_cache(maxsize=64)
def _open(path: Path) -> io.FileIO:
    return io.FileIO(path)


def _read_at(path: Path, start: int, size: int) -> bytes:
    """Bytes of a file that threads and forked processes have open together: none of them may move the others."""
    file = _open(path)
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, start)
    with _moving:  # on Windows, where no process is forked
        file.seek(start)
        return file.read(size)
