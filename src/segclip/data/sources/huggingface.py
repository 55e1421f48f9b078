"""Hugging Face datasets on disk: `save_to_disk` folders and parquet files, memory-mapped. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segclip.data.sources.pairs import Pair, find_captions, located, to_captions, to_meta
from segclip.utils.optional import require

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET = ("*.parquet", "data/*.parquet")  # as the Hub lays them out


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
        """
        found: dict[str, Any] = _photos(self.dataset, self.split, self.column)[self.index]
        value = found[self.column] or {}
        if value.get("bytes") is not None:
            return value["bytes"]
        if not value.get("path"):
            raise FileNotFoundError(f"{self.dataset}, row {self.index}: has no photo")
        return (self.dataset / value["path"]).read_bytes()


def is_dataset(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes, or has parquet files."""
    return is_saved(path) or any(True for pattern in PARQUET for _ in path.glob(pattern))


def is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def list_files(path: Path, split: str) -> list[Path]:
    """The arrow or parquet files that the rows of a split come from, sorted."""
    if not is_saved(path):
        return sorted(file for pattern in PARQUET for file in path.glob(pattern))
    return sorted(_saved_folder(path, split).glob("*.arrow"))


def read_dataset(path: Path, split: str) -> Iterator[Pair]:
    """Pairs of a dataset with one column of images and one of captions; `meta` has its plain columns.

    Raises:
        ValueError: the library is missing, there is no such split, or the columns are others.
    """
    rows = _open(path, split)
    photo, caption = _find_columns(path, rows)
    plain = [name for name, feature in rows.features.items() if _is_plain(feature) and name not in (photo, caption)]
    row: dict[str, Any]
    for index, row in enumerate(rows.select_columns([caption, *plain])):  # pyright: ignore[reportAssignmentType]
        with located(f"{path}, row {index}"):
            captions = to_captions(row[caption])
        meta = {name: to_meta(row[name]) for name in plain}
        yield Pair(f"row {index}", Row(path, split, index, photo), captions, meta, read=(index + 1) / len(rows))


@lru_cache(maxsize=4)
def _photos(path: Path, split: str, column: str) -> "Dataset":
    from datasets import Image

    return _open(path, split).select_columns([column]).cast_column(column, Image(decode=False))


@lru_cache(maxsize=4)  # a worker process opens a dataset once
def _open(path: Path, split: str) -> "Dataset":
    datasets = require("datasets", extra="train")
    folder = _saved_folder(path, split) if is_saved(path) else None
    try:
        rows = datasets.load_from_disk(str(folder)) if folder else datasets.load_dataset(str(path), split=split)
    except Exception as error:  # the library's own readers raise nearly anything for damaged files
        raise ValueError(f"{path}: cannot be opened as a Hugging Face dataset, split {split!r} ({error})") from error
    if not isinstance(rows, datasets.Dataset):
        raise ValueError(f"{path}: a {type(rows).__name__}, not a dataset of rows; save it anew with save_to_disk")
    return rows.with_format(None)  # a saved one may ask for torch's tensors


def _saved_folder(path: Path, split: str) -> Path:
    if not (path / "dataset_dict.json").is_file():
        return path
    splits = sorted(folder.parent.name for folder in path.glob("*/state.json"))
    if split not in splits:
        raise ValueError(f"{path}: no split {split!r}; it has {', '.join(splits) or 'none'}: name one by --split")
    return path / split


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
