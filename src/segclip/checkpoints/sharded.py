"""Weights in several files, as transformers' `save_pretrained` writes large ones: an index and its parts."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from segclip.checkpoints.download import file_sha256
from segclip.checkpoints.native import EXPECTED, MOST_TENSORS, CheckpointError, listing
from segclip.utils.messages import brief, shorten

INDEX_SUFFIX = ".index.json"
LONGEST_INDEX = 16 << 20  # bytes
MOST_PARTS = 1000
PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")
PLAIN_NAME = re.compile(r"[\w-][\w.-]*")  # of a file beside the index, and no way out of its folder


def find_index(path: Path) -> Path | None:
    """The index that a file of weights is, or by which it is one part of several; None: it stands for itself.

    Raises:
        CheckpointError: one part of several, by its name, and there is no index.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return path
    found = PART.fullmatch(path.name)
    if found is None or int(found["count"]) < 2:
        return None
    index = path.with_name(f"{found['stem']}{found['suffix']}{INDEX_SUFFIX}")
    if not index.is_file():
        raise CheckpointError(
            f"{path}: one of {int(found['count'])} files of one model; put the others and {index.name} beside it"
        )
    return index


def part_names(index: Path) -> dict[str, list[str]]:
    """The files that an index lists, and the tensors of each.

    Raises:
        CheckpointError: no index, or one that names what no index has.
    """
    try:
        if index.stat().st_size > LONGEST_INDEX:
            raise ValueError(f"{index.stat().st_size:,} bytes, more than an index has")
        raw = json.loads(index.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: no index of weights ({shorten(str(error), 200)}); copy it again") from error
    places = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(places, dict) or not places or len(places) > MOST_TENSORS:
        raise CheckpointError(f"{index}: an index without weight_map, which says where each tensor is; {EXPECTED}")
    parts: dict[str, list[str]] = {}
    for name, part in places.items():
        if not isinstance(part, str) or not PLAIN_NAME.fullmatch(part) or part.endswith(INDEX_SUFFIX):
            raise CheckpointError(f"{index}: {brief(part)} is no name of a file beside it; copy the index again")
        parts.setdefault(part, []).append(name)
    if len(parts) > MOST_PARTS:
        raise CheckpointError(f"{index}: {len(parts):,} files; expected at most {MOST_PARTS:,}")
    return parts


def weights_sha256(path: Path) -> str:
    """Of a file of weights; of several, of what `sha256sum` prints of the index and its parts, by their names."""
    if (index := find_index(path)) is None:
        return file_sha256(path)
    files = [index, *(index.with_name(part) for part in sorted(part_names(index)))]
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_parts(index: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all parts.

    Args:
        index: of them.
        read: the tensors of one file.

    Raises:
        CheckpointError: a damaged index; a part that is missing, damaged, or not what the index says.
    """
    state: dict[str, Tensor] = {}
    parts = part_names(index)
    missing = [part for part in parts if not index.with_name(part).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: of its {len(parts)} files are missing: {listing(missing)}; copy them beside it"
        )
    for part, names in parts.items():
        found = read(index.with_name(part))
        if absent := [name for name in names if name not in found]:
            raise CheckpointError(
                f"{index.with_name(part)}: without {listing(absent)}, which are in it by {index.name}; copy both again"
            )
        state |= {name: found[name] for name in names}
    return state
