"""What `segclip prepare` reads: photos and captions as people have them, to a stream of pairs in a fixed order.

A format is told from the content, or named. Nothing is collected over all samples where the format allows it, and no
photo is read or looked for. No torch: worker processes import this module.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from segclip.data.sources.coco import (
    find_coco_file,
    find_coco_photos,
    is_coco,
    is_karpathy,
    load_document,
    read_coco,
    read_karpathy,
)
from segclip.data.sources.huggingface import is_dataset, list_files, read_dataset
from segclip.data.sources.lines import DELIMITERS, JSONL_SUFFIXES, read_jsonl, read_table
from segclip.data.sources.pairs import Pair
from segclip.data.sources.tars import find_compressed, list_tars, read_tars

logger = logging.getLogger(__name__)
Format = Literal["auto", "jsonl", "table", "coco", "karpathy", "img2dataset", "huggingface"]
PACKED = ("img2dataset", "huggingface")  # have their photos inside

FORMATS = """the formats:
  jsonl        a *.jsonl or *.ndjson file (or a folder with one): a photo's path and its captions a line
  table        a *.csv or *.tsv file with a header row, as image,caption
  coco         annotations/captions_*.json (or the folder above it)
  karpathy     dataset_coco.json
  img2dataset  a folder of *.tar, or one (webdataset)
  huggingface  a folder of save_to_disk, or with *.parquet
Name one by --format."""


@dataclass(frozen=True)
class Source:
    """Where photos and captions are read from; `open_source` makes it.

    Attributes:
        format: the format found, never "auto".
        path: its file, or its folder where it has many.
        photos: the folder that photo paths start from.
        split: the part that is read, where the format has parts.
    """

    format: Format
    path: Path
    photos: Path
    split: str

    def pairs(self) -> Iterator[Pair]:
        """The pairs, always in the same order; photos are neither read nor looked for.

        Raises:
            ValueError: the source is broken, unsafe, or empty; it names the file and line, member or entry.
        """
        found = False
        for pair in self._read():
            found = True
            yield pair
        if not found:
            raise ValueError(f"{self.path}: no samples in it; expected at least one photo with a caption")

    def fingerprint(self) -> str:
        """Hex digest of the format, the split, the source's files and its photos: whether this is still the same input.

        A file of captions counts with its content, photos and large files of photos with size and time.
        """
        digest = hashlib.sha256(f"{self.format} {self.split}".encode())
        if self.format in PACKED:
            for file in self._files():
                digest.update(f" {file.name} {_stamp(file)}".encode("utf-8", "surrogateescape"))
            return digest.hexdigest()
        with self.path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
        for pair in self._read():
            if isinstance(pair.photo, Path):
                digest.update(f" {_stamp(pair.photo)}".encode())
        return digest.hexdigest()

    def _read(self) -> Iterator[Pair]:
        match self.format:
            case "jsonl":
                return read_jsonl(self.path, self.photos)
            case "table":
                return read_table(self.path, self.photos)
            case "coco":
                return read_coco(self.path, self.photos)
            case "karpathy":
                return read_karpathy(self.path, self.photos, self.split)
            case "img2dataset":
                return read_tars(list_tars(self.path))
            case "huggingface":
                return read_dataset(self.path, self.split)
            case "auto":
                raise ValueError('a Source has the format found, not "auto"; open_source makes it')

    def _files(self) -> list[Path]:
        return list_tars(self.path) if self.format == "img2dataset" else list_files(self.path, self.split)


def open_source(path: Path, format: Format = "auto", photos: Path | None = None, split: str = "train") -> Source:
    """Find out what `path` is, and where its photos lie.

    Args:
        path: a file or a folder; see FORMATS.
        format: what it is; "auto" tells it from the content.
        photos: the folder that photo paths start from; None for where the format has it.
        split: the part to read, of Karpathy's file and of a Hugging Face dataset.

    Raises:
        ValueError: nothing is there, its format cannot be told, or is another one than `format`.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path")
    if format not in get_args(Format):
        raise ValueError(f"format {format!r}; expected one of {', '.join(get_args(Format))}")
    found = _detect(path) if format == "auto" else format
    file = _locate(path, found)
    if found in PACKED and photos is not None:
        raise ValueError(f"{path}: {found} has its photos inside; leave out --photos {photos}")
    if photos is None:
        photos = find_coco_photos(file) if found == "coco" else file if file.is_dir() else file.parent
    if not photos.is_dir():
        raise ValueError(f"{photos}: no such folder; --photos names the folder that photo paths start from")
    return Source(found, file, photos, split)


def _stamp(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _detect(path: Path) -> Format:
    candidates = _detect_folder(path) if path.is_dir() else _detect_file(path)
    if len(candidates) > 1:
        raise ValueError(f"{path}: may be {' or '.join(candidates)}; {FORMATS}")
    if not candidates:
        raise ValueError(f"{path}: {_describe(path)}; not known. {FORMATS}")
    return candidates[0]


def _detect_folder(path: Path) -> list[Format]:
    found: list[Format] = []
    if any(file.suffix.lower() == ".tar" for file in path.iterdir()):
        found.append("img2dataset")  # which writes parquet files of its own beside its tars
    elif is_dataset(path):
        found.append("huggingface")
    if _list_jsonl(path):
        found.append("jsonl")
    if any(path.glob("annotations/captions_*.json")):
        found.append("coco")
    return found


def _detect_file(path: Path) -> list[Format]:
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        return ["jsonl"]
    if suffix in DELIMITERS:
        return ["table"]
    if suffix == ".tar":
        return ["img2dataset"]
    if suffix != ".json":
        return []
    document = load_document(path)
    if is_coco(document):
        return ["coco"]
    return ["karpathy"] if is_karpathy(document) else []


def _describe(path: Path) -> str:
    if path.is_dir():
        names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        return f"a folder with {', '.join(names[:8])}{', ...' * (len(names) > 8)}" if names else "an empty folder"
    if path.suffix.lower() != ".json":
        return f"a {path.suffix or 'nameless'} file of {path.stat().st_size} bytes"
    document = load_document(path)
    fields = f" with {', '.join(list(document)[:8])}" if isinstance(document, dict) and document else ""
    return f"a JSON {type(document).__name__}{fields}"


def _locate(path: Path, format: Format) -> Path:
    """The file, or the folder of many, that a format reads of `path`; ValueError where it cannot be this format."""
    if format == "huggingface":
        if not (path.is_dir() and is_dataset(path)):
            raise ValueError(f"{path}: no Hugging Face dataset; expected a folder of save_to_disk, or with *.parquet")
        return path
    if format == "img2dataset":
        list_tars(path)
        if path.is_dir() and (left := find_compressed(path)):
            logger.warning(
                "%s: %d compressed tars are not read, such as %s; unpack them", path, len(left), left[0].name
            )
        if path.is_file() and path.suffix.lower() != ".tar":
            raise ValueError(f"{path}: no tar; img2dataset writes *.tar, give their folder or one of them")
        return path
    return _locate_file(path, format)


def _locate_file(path: Path, format: Format) -> Path:
    if format == "jsonl" and path.is_dir():
        files = _list_jsonl(path)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or _describe(path)
            raise ValueError(f"{path}: {len(files)} JSON-lines files ({names}); name one")
        path = files[0]
    if format == "coco":
        path = find_coco_file(path)
    suffixes = {"jsonl": JSONL_SUFFIXES, "table": tuple(DELIMITERS)}.get(format, (".json",))
    if path.is_dir() or path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: {_describe(path)}; {format} is a file of {' or '.join(suffixes)}: name or rename it")
    return path


def _list_jsonl(path: Path) -> list[Path]:
    return sorted(file for suffix in JSONL_SUFFIXES for file in path.glob(f"*{suffix}") if file.is_file())
