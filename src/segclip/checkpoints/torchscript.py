"""Tensors of a TorchScript archive, read without running its program.

`torch.jit.load` runs code of the archive, and `torch.load(weights_only=True)` refuses such archives. The archive is a
zip: `NAME/data.pkl` describes the module tree, `NAME/data/KEY` holds the bytes of a storage. Here the pickle may only
build plain attribute holders, lists and tensors; whatever else it asks for is refused.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGE_TYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
MOST_PARTS = 100_000  # modules and tensors, each time that one is named; a pickle can name one part in many others
LONGEST_NAME = 1000  # letters


class _Storage:
    """A typed storage: all its elements as one flat tensor."""

    def __init__(self, elements: Tensor) -> None:
        self.elements = elements


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters, buffers and tensor attributes of the archive's module, under their dotted names.

    Raises:
        pickle.UnpicklingError: the archive asks for anything but tensors and plain attributes.
        ValueError, KeyError, RuntimeError, zipfile.BadZipFile: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return dict(_named_tensors(_TensorUnpickler(archive, name.removesuffix("data.pkl")).load()))


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        program = archive.read(prefix + "data.pkl")
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(program):
                # The unpickler would allocate memory for as many objects.
                raise ValueError(f"object {argument} in a pickle of {len(program)} bytes")
        super().__init__(io.BytesIO(program))
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):  # a module of the program: only its attributes are of interest
            return type("Attributes", (), {})
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _tensor(*arguments),
            **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
            ("torch.jit._pickle", "restore_type_tag"): lambda value, *_: value,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is refused")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"persistent id {kind!r} is refused")
        if key not in self._storages:
            content = self._archive.read(f"{self._prefix}data/{key}")
            if len(content) != count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(content)} bytes; expected {count} elements of {dtype}")
            elements = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(elements)
        return self._storages[key]


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any) -> Tensor:
    return storage.elements.as_strided(size, stride, offset)  # refuses what lies outside the storage


def _named_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module tree under their dotted names. Raises ValueError for more parts than a tree can have."""
    left, parts = [("", root)], 0
    while left:
        prefix, node = left.pop()
        parts += len(vars(node))
        if parts > MOST_PARTS or len(prefix) > LONGEST_NAME:
            raise ValueError("no tree of modules")
        for name, value in vars(node).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif type(value).__name__ == "Attributes":
                left.append((f"{prefix}{name}.", value))
