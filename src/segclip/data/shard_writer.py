"""Writing shards: samples are appended in order, and a run that is killed at any moment can go on."""

import hashlib
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from segclip.data.shards import END, INDEX, Index, ShardInfo
from segclip.data.superpixels import Method
from segclip.utils.files import atomic

BadKind = Literal["missing", "corrupt", "tiny", "captionless"]
DATABASE = "progress.sqlite"
REPORT = "report.jsonl"
DUPLICATE = "duplicate"  # in the report beside BadKind: kept
SAVE_EVERY = 1.0  # seconds between two saved states
FULL = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_CANTOPEN")  # a full disk's
TABLES = """
CREATE TABLE IF NOT EXISTS run (made_from TEXT, seen INTEGER);
CREATE TABLE IF NOT EXISTS shard (file TEXT, samples INTEGER, captions INTEGER, bytes INTEGER, sha256 TEXT);
CREATE TABLE IF NOT EXISTS open_sample (end INTEGER, captions INTEGER);
CREATE TABLE IF NOT EXISTS photo (digest BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS report (item INTEGER, kind TEXT, name TEXT, why TEXT);
"""


@dataclass(frozen=True)
class Packed:
    """What became of a pair: the bytes of its sample, or why it was left out.

    Attributes:
        name: what the report calls the pair.
        data: as `pack_sample` gives them; empty when it was left out.
        captions: how many.
        digest: of the photo's file.
        kind, why: of what was left out; empty otherwise.
    """

    name: str
    data: bytes = b""
    captions: int = 0
    digest: bytes = b""
    kind: BadKind | Literal[""] = ""
    why: str = ""


@contextmanager
def whole_progress(out: Path) -> Iterator[None]:
    """Say of a damaged file of progress what to do; a full disk is another matter."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") in FULL:
            raise
        raise _damaged(out, str(error)) from error


class ShardWriter:
    """Appends samples to shards; a shard gets its name when it is whole.

    Everything about the samples is in a database on disk, so memory does not grow with them; what it says is true of
    the files whenever it is committed, and what was written after that is cut off when the run goes on.
    """

    def __init__(self, out: Path, name: str, limit: int, made_from: str) -> None:
        """Open the folder.

        Args:
            out: the folder, which nobody else writes to.
            name: of the shards.
            limit: size of a shard, in bytes; only a sample larger than this gets a larger shard.
            made_from: digest of the source and the settings.

        Raises:
            ValueError: a run of another source or other settings was broken off in this folder, or the files are not
                those that its progress tells of.
        """
        self.out, self.name, self.limit, self.made_from = out, name, limit, made_from
        self.database = sqlite3.connect(out / DATABASE)
        self.database.executescript(TABLES)
        found = self.database.execute("SELECT made_from, seen FROM run").fetchone()
        if found is None:
            found = (made_from, 0)
            self.database.execute("INSERT INTO run VALUES (?, ?)", found)
            self.database.commit()
        if found[0] != made_from:
            self.database.close()
            raise ValueError(
                f"{out}: a run of another source or with other settings was broken off here, or its photos changed "
                "since; give another folder, or delete this one"
            )
        if type(found[1]) is not int or found[1] < 0:
            raise _damaged(out, f"{found[1]!r:.40} photos were seen")
        self.seen: int = found[1]
        self.reported = Counter(dict(self.database.execute("SELECT kind, count(*) FROM report GROUP BY kind")))
        self._reopen_shard()
        self.saved = time.monotonic()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.database.close()  # what was not committed is done again by the next run
        self.file.close()
        if error is not None and not self.seen:  # nothing was done, so the folder is free for another source
            for path in (self.out / DATABASE, self._path(".tar.part")):
                path.unlink(missing_ok=True)

    def add(self, block: Sequence[Packed]) -> None:
        """Take the next block of the source. Raises OSError or sqlite3.OperationalError where the disk is full."""
        for packed in block:
            if packed.data:
                self._append(packed)
                self._note_duplicate(packed)
            else:
                self._report(packed.kind, packed.name, packed.why)
            self.seen += 1
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Make sure that all so far survives whatever happens to this process, or to the machine."""
        os.fsync(self.file.fileno())
        self._commit()
        self.saved = time.monotonic()

    def left_out(self) -> dict[str, int]:
        """How many photos were left out, by kind."""
        return {kind: count for kind, count in sorted(self.reported.items()) if kind != DUPLICATE}

    def first_left_out(self) -> str:
        query = "SELECT name, why FROM report WHERE kind != ? ORDER BY item"
        return ": ".join(self.database.execute(query, (DUPLICATE,)).fetchone())

    def write_report(self) -> Path:
        """Write a line for each photo that was left out, and for each duplicate."""
        path = self.out / REPORT
        with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for item, kind, name, why in self.database.execute("SELECT * FROM report ORDER BY item"):
                line = {"item": item, "kind": kind, "photo": name, "why": why}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return path

    def finish(self, superpixels: Method | None, side: int) -> Index:
        """Close the last shard, write the report and the index, and forget the state."""
        if self.end:
            self._close_shard()
        else:  # the run was broken off after the last shard
            self._path(".tar.part").unlink()
        self._commit()
        self.write_report()
        shards = tuple(ShardInfo(*row) for row in self.database.execute("SELECT * FROM shard ORDER BY rowid"))
        index = Index(
            shards=shards,
            samples=sum(shard.samples for shard in shards),
            captions=sum(shard.captions for shard in shards),
            superpixels=superpixels,
            side=side,
            seen=self.seen,
            left_out=self.left_out(),
            duplicates=self.reported[DUPLICATE],
            made_from=self.made_from,
        )
        with atomic(self.out / INDEX) as temporary:
            temporary.write_text(index.to_json(), "utf-8")
        (self.out / DATABASE).unlink()
        return index

    def _commit(self) -> None:
        self.database.execute("UPDATE run SET seen = ?", (self.seen,))
        self.database.commit()

    def _append(self, packed: Packed) -> None:
        if self.end and self.end + len(packed.data) + len(END) > self.limit:
            self._close_shard()
            self.shard += 1
            self._open_shard(0)
        _write(self.file, packed.data)
        self.end += len(packed.data)
        self.database.execute("INSERT INTO open_sample VALUES (?, ?)", (self.end, packed.captions))

    def _note_duplicate(self, packed: Packed) -> None:
        row = (packed.digest, _writable(packed.name))
        self.database.execute("INSERT OR IGNORE INTO photo VALUES (?, ?)", row)
        if not self.database.execute("SELECT changes()").fetchone()[0]:
            query = "SELECT name FROM photo WHERE digest = ?"
            (first,) = self.database.execute(query, (packed.digest,)).fetchone()
            self._report(DUPLICATE, packed.name, f"the same file as {first}; kept")

    def _report(self, kind: str, name: str, why: str) -> None:
        row = (self.seen, kind, _writable(name), _writable(why))
        self.database.execute("INSERT INTO report VALUES (?, ?, ?, ?)", row)
        self.reported[kind] += 1

    def _reopen_shard(self) -> None:
        """Open the shard that was open when the state was saved, cut to what it had then."""
        (self.shard,) = self.database.execute("SELECT count(*) FROM shard").fetchone()
        (end,) = self.database.execute("SELECT max(end) FROM open_sample").fetchone()
        for file, size in self.database.execute("SELECT file, bytes FROM shard"):
            _check_size(self.out, f"{file}.tar", size)
        if self._path(".tar").exists():  # it was finished after the state was saved
            os.replace(self._path(".tar"), self._path(".tar.part"))
        if end:  # or the missing bytes would become zeros
            _check_size(self.out, self._path(".tar.part").name, end, at_least=True)
        self._open_shard(end or 0)

    def _open_shard(self, size: int) -> None:
        path = self._path(".tar.part")
        path.touch()
        self.file = path.open("r+b", buffering=0)
        self.file.truncate(size)
        self.end = self.file.seek(size)

    def _close_shard(self) -> None:
        _write(self.file, END)
        os.fsync(self.file.fileno())
        self.file.seek(0)
        sha256 = hashlib.file_digest(self.file, "sha256").hexdigest()
        rows = self.database.execute("SELECT end, captions FROM open_sample ORDER BY rowid").fetchall()
        table = np.array(rows, dtype=np.int64)
        with atomic(self._path(".npy")) as temporary, temporary.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        self.file.close()
        os.replace(self._path(".tar.part"), self._path(".tar"))
        info = (f"{self.name}-{self.shard:06d}", len(rows), int(table[:, 1].sum()), self.end + len(END), sha256)
        self.database.execute("INSERT INTO shard VALUES (?, ?, ?, ?, ?)", info)
        self.database.execute("DELETE FROM open_sample")

    def _path(self, suffix: str) -> Path:
        return self.out / f"{self.name}-{self.shard:06d}{suffix}"


def _damaged(out: Path, why: str) -> ValueError:
    return ValueError(
        f"{out / DATABASE}: damaged, or not of this folder's shards ({why}); delete the folder {out} and give the same "
        "command again"
    )


def _check_size(out: Path, name: str, size: object, at_least: bool = False) -> None:
    found = (out / name).stat().st_size if (out / name).is_file() else 0
    if not isinstance(size, int) or found < size or (found > size and not at_least):
        raise _damaged(out, f"{name} has {found} bytes, not {size!r:.40}")


def _writable(text: str) -> str:
    """Text for the report: half characters, which UTF-8 cannot hold, as Python escapes them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write(file: FileIO, data: bytes) -> None:
    """Write all of it: a raw file may write less."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
