"""Named tensors of any file of weights, told by its content and never by its suffix; no file ever runs code."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segclip.checkpoints.native import EXPECTED, MOST_TENSORS, CheckpointError, listing, read_safetensors
from segclip.checkpoints.sharded import find_index, read_parts
from segclip.checkpoints.torchscript import read_torchscript
from segclip.utils.messages import shorten

# A file may unpack to this many times its size, and so much more. Torch packs no weights, and weights hardly get
# smaller; names that share a tensor count each.
UNPACKED, UNPACKED_MORE = 4, 16 << 20

# First bytes of what people take for weights by mistake.
FOREIGN_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (run `git lfs pull`)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF document",
    b"GGUF": "a GGUF file (llama.cpp)",
    b"<": "a web page or XML",
}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata (safetensors alone has any) of a file of weights, or of several with an index.

    Raises:
        CheckpointError: unreadable, truncated, no file of weights, or one that would have to run code.
    """
    if (index := find_index(path)) is not None:
        return read_parts(index, lambda part: _read_one(part)[0]), {}
    return _read_one(path)


def _read_one(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if path.exists() and not path.is_file():  # a folder, a pipe that nobody writes to
            raise CheckpointError(f"{path}: no regular file; {EXPECTED}")
        with path.open("rb") as file:
            beginning = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {EXPECTED}") from error
    if beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 1 << 32:
        return read_safetensors(path)
    kind = _kind(path, beginning)
    if kind not in ("TorchScript", "torch.save"):
        raise CheckpointError(f"{path}: looks like {kind}; {EXPECTED}")
    try:
        if kind == "TorchScript":
            return _checked(read_torchscript(path), path), {}
        with path.open("rb") as file:  # by its name, torch.load would judge it by its suffix
            return _checked(_state_dict(torch.load(file, map_location="cpu", weights_only=True), path), path), {}
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise CheckpointError(f"{path}: {_reason(error)}; {EXPECTED}") from error


def _checked(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, unless they are too many or, written out, too large: one number of a file can pose as billions."""
    if len(state) > MOST_TENSORS:
        raise CheckpointError(f"{path}: {len(state):,} tensors; expected at most {MOST_TENSORS:,}")
    size, written = path.stat().st_size, sum(tensor.numel() * tensor.itemsize for tensor in state.values())
    if _is_bomb(size, written):
        raise CheckpointError(f"{path}: {size:,} bytes with tensors of {written:,} bytes; {EXPECTED}")
    return state


def _is_bomb(size: int, unpacked: int) -> bool:
    return unpacked > UNPACKED * size + UNPACKED_MORE


def _kind(path: Path, beginning: bytes) -> str:
    if not beginning:
        return "an empty file"
    if beginning.startswith(b"PK"):
        return _zip_kind(path)
    if beginning[0] == 0x80 and beginning[1] in range(2, 6):  # a pickle: torch.save before torch 1.6
        return "torch.save"
    for start, name in FOREIGN_BEGINNINGS.items():
        if beginning.lstrip().startswith(start):
            return name
    try:
        text = beginning.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return f"no known format (it begins with {beginning[:8].hex(' ')})"
    return f"a text file (it begins with {text[:24]!r})" if text.isprintable() or text.split() else "no known format"


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # not BadZipFile alone
        return "a truncated torch file or zip archive (copy or download it again)"
    names = [entry.filename for entry in entries]
    if len(names) > MOST_TENSORS:
        return f"a zip archive of {len(names):,} files"
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if _is_bomb(size, unpacked):
        return f"a zip bomb: {size:,} bytes that unpack to {unpacked:,}"
    if entries and min(entry.header_offset for entry in entries):  # torch would not read what was looked at here
        return "a zip archive with other data before it"
    if not any(name.endswith("/data.pkl") for name in names):
        return f"a zip archive of other files: {listing(names)}"
    return "TorchScript" if any(name.endswith("/constants.pkl") for name in names) else "torch.save"


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
        return f"looks like a pickle that would run or build {shorten(found[1])} when loaded, which is refused"
    found = re.search(r"WeightsUnpickler error: (.+)", str(error))  # before it, torch advises to run the file's code
    why = found[1] if found else str(error).strip().partition("\n")[0]
    return f"looks like a damaged or truncated torch file ({type(error).__name__}: {shorten(why, 120)})"


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a saved object: a state dict, or a training checkpoint that holds one."""
    if isinstance(content, dict):
        inner = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
        state = {
            name: value
            for name, value in inner.items()
            if isinstance(name, str)
            and isinstance(value, Tensor)
            and value.layout == torch.strided
            and not value.is_meta
        }
        if state:
            return state
        raise CheckpointError(
            f"{path}: looks like a Python dict without tensors, keys {listing(map(str, content))}; {EXPECTED}"
        )
    raise CheckpointError(f"{path}: looks like a saved {type(content).__name__}; {EXPECTED}")
