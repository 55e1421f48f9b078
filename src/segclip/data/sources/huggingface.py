"""Hugging Face datasets on disk: `save_to_disk` folders and parquet files, memory-mapped. No torch.

A dataset from elsewhere could name files anywhere: in its README (`data_files`), which is not read, in `state.json`,
and in its rows. Only files in its folder are read.
"""

import glob
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segclip.data.remote import PLAIN_NAME
from segclip.data.sources.pairs import (
    Pair,
    bad_pair,
    find_captions,
    located,
    read_file,
    to_captions,
    to_meta,
    to_path,
)
from segclip.utils.messages import brief
from segclip.utils.optional import require

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET = ("*.parquet", "data/*.parquet")  # as the Hub lays them out
NUMBERED = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")  # data/SPLIT-00000-of-00001.parquet
SPLITS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing", "eval", "evaluation")}


@dataclass(frozen=True)
class Row:
    """A photo in a Hugging Face dataset on disk."""

    dataset: Path
    split: str
    index: int
    column: str

    def read_bytes(self) -> bytes:
        """The photo's bytes; those of the file that the row names, where the dataset has no bytes.

        Raises:
            FileNotFoundError: neither is there.
            ValueError: the file is not in the dataset's folder.
        """
        found: dict[str, Any] = _photos(self.dataset, self.split, self.column)[self.index]
        value = found[self.column] or {}
        if value.get("bytes") is not None:
            return value["bytes"]
        if not value.get("path"):
            raise FileNotFoundError(f"{self.dataset}, row {self.index}: has no photo")
        return read_file(self.dataset / to_path(value["path"]))


def is_dataset(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes, or has parquet files."""
    return is_saved(path) or any(True for pattern in PARQUET for _ in path.glob(pattern))


def is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def list_files(path: Path, split: str) -> list[Path]:
    """The arrow or parquet files that the rows of a split come from, sorted.

    Raises:
        ValueError: there is no such split.
    """
    if is_saved(path):
        return sorted(_saved_folder(path, split).glob("*.arrow"))
    files = sorted(file for pattern in PARQUET for file in path.glob(pattern))
    splits = [_split_of(file, path) for file in files]
    if split not in splits:
        raise _no_split(path, split, set(splits))
    return [file for file, its_split in zip(files, splits, strict=True) if its_split == split]


def read_dataset(path: Path, split: str) -> Iterator[Pair]:
    """Pairs of a dataset with one column of images and one of captions; `meta` has its plain columns.

    A row that cannot be read, or with captions of other kinds, is a bad pair.

    Raises:
        ValueError: the library is missing, there is no such split, or the columns are others.
    """
    rows = _open(path, split)
    photo, caption = _find_columns(path, rows)
    plain = [name for name, feature in rows.features.items() if _is_plain(feature) and name not in (photo, caption)]
    texts = rows.select_columns([caption, *plain])
    for index in range(len(rows)):
        name, read = f"row {index}", (index + 1) / len(rows)
        try:
            row: dict[str, Any] = texts[index]
            captions = to_captions(row[caption])
            meta = to_meta({name: row[name] for name in plain})
        except Exception as error:  # arrow takes nearly any bytes for a text, and the library finds out here
            yield bad_pair(name, ValueError(f"cannot be read ({error})"), read)
            continue
        yield Pair(name, Row(path, split, index, photo), captions, meta, read=read)


@lru_cache(maxsize=4)
def _photos(path: Path, split: str, column: str) -> "Dataset":
    from datasets import Image

    return _open(path, split).select_columns([column]).cast_column(column, Image(decode=False))


@lru_cache(maxsize=4)  # a worker process opens a dataset once
def _open(path: Path, split: str) -> "Dataset":
    datasets = require("datasets", extra="train")
    files = list_files(path, split)
    if is_saved(path):
        _check_saved(_saved_folder(path, split))
    try:
        if is_saved(path):
            rows = datasets.load_from_disk(str(_saved_folder(path, split)))
        else:  # not load_dataset, which follows what the README names
            rows = datasets.Dataset.from_parquet([glob.escape(str(file.absolute())) for file in files])
    except Exception as error:  # the library's own readers raise nearly anything for damaged files
        raise ValueError(f"{path}: cannot be opened as a Hugging Face dataset, split {split!r} ({error})") from error
    if not isinstance(rows, datasets.Dataset):
        raise ValueError(f"{path}: a {type(rows).__name__}, not a dataset of rows; save it anew with save_to_disk")
    rows = rows.with_format(None)  # a saved one may ask for torch's tensors
    for name, feature in rows.features.items():  # parquet that others wrote says only what images are made of
        if isinstance(feature, dict) and feature.keys() == {"bytes", "path"}:
            rows = rows.cast_column(name, datasets.Image())
    return rows


def _saved_folder(path: Path, split: str) -> Path:
    if not (path / "dataset_dict.json").is_file():
        return path
    splits = {folder.parent.name for folder in path.glob("*/state.json")}
    if split not in splits:
        raise _no_split(path, split, splits)
    return path / split


def _check_saved(folder: Path) -> None:
    """Raise ValueError where a saved dataset names files that are not in its folder."""
    state = folder / "state.json"
    try:
        names = [entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{state}: cannot be opened as a Hugging Face dataset ({error!r}); get it again") from None
    if odd := [name for name in names if not (isinstance(name, str) and PLAIN_NAME.fullmatch(name))]:
        raise ValueError(f"{state}: the data file {brief(odd[0])} is not a plain name; only files beside it are read")


def _split_of(parquet: Path, folder: Path) -> str:
    """The split that a file's name says, by the rules of the Hub; one that says none is of `train`."""
    if parquet.parent != folder and (numbered := NUMBERED.fullmatch(parquet.stem)):
        return numbered[1]
    words = re.split(r"[\W\d_]+", parquet.stem.lower())
    return next((split for split, names in SPLITS.items() if not {*names}.isdisjoint(words)), "train")


def _no_split(path: Path, split: str, splits: set[str]) -> ValueError:
    return ValueError(f"{path}: no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}: name one by --split")


def _find_columns(path: Path, rows: "Dataset") -> tuple[str, str]:
    from datasets import Image

    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in rows.features.items())
    images = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    if len(images) != 1:
        raise ValueError(f"{path}: {len(images)} columns of images among {columns}; expected one: select or cast it")
    names = [name for name in rows.column_names if name not in images]
    with located(str(path)):
        return images[0], find_captions(names)


def _is_plain(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))  # a list's or a dictionary's is none of these
    return kind in ("string", "large_string", "bool") or kind.startswith(("int", "uint", "float"))
