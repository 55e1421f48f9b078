"""Damaged and hostile files of weights: each is read as finite numbers, or refused."""

import collections
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from helpers.formats import Tree, to_openai, to_transformers
from torch import Tensor

from attacks.models import SMALL, small_model
from attacks.mutate import VALUES, mutate, mutate_value
from attacks.process import Fault, Refused, refusal
from segclip import SegCLIP, load
from segclip.checkpoints.native import save_model

TINY = Path(__file__).parents[2] / "tests/golden/tiny.bin"  # of the authors' format
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "?", "")
GLOBALS = (os.system, os.mkdir, eval, getattr, open, collections.Counter, io.BytesIO, torch.load, bytearray, set)


class Call:
    """What a pickle of it does when it is read by pickle itself."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


class Weights:
    """Weights of every format, and folders with a configuration."""

    megabytes, seconds = 1500, 60.0

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        model = small_model(replace(SMALL, text=replace(SMALL.text, vocabulary=512)))
        for name, eight_bit in (("ours", False), ("eight", True)):
            save_model(model, folder / f"{name}.safetensors", eight_bit=eight_bit)
        model.save_pretrained(folder / "saved")
        authors: dict[str, Tensor] = torch.load(TINY, weights_only=True)
        self.openai = to_openai(authors)
        self.states = [authors, self.openai, to_transformers(self.openai), dict(model.state_dict())]
        for number, state in enumerate(self.states[:3]):
            torch.save(state, folder / f"zip-{number}.pt")
            torch.save(state, folder / f"old-{number}.pt", _use_new_zipfile_serialization=False)
        traced: Any = torch.jit.trace(Tree(self.openai), torch.zeros(1))
        traced.save(str(folder / "archive.pt"))
        self.files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        self.seeds = {path.name: path.read_bytes() for path in self.files}
        self.ways = (*(self._header, self._bytes) * 3, self._folder, self._values, self._pickle, self._zip)
        for path in (*self.files, folder / "saved"):
            load(path, "cpu")

    def attempt(self, generator: random.Random, number: int) -> bool:
        """An input of one of the ways."""
        path = self.folder / "hostile.bin"
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        before = set(os.listdir(self.folder))
        generator.choice(self.ways)(path, generator)
        doors = [lambda: load(path, "cpu")]
        if path.is_dir():
            doors.append(lambda: SegCLIP.from_pretrained(path))
        taken = False
        for door in doors:
            found = refusal(door, path)
            if not isinstance(found, Refused):
                taken = True
                if not all(tensor.isfinite().all() for tensor in found.state_dict().values()):
                    raise Fault("a model with numbers that are not finite")
        if new := set(os.listdir(self.folder)) - before - {path.name}:
            raise Fault(f"code of the file ran, and made {new}")
        return taken

    def _bytes(self, path: Path, generator: random.Random) -> None:
        names = list(self.seeds)
        path.write_bytes(mutate(self.seeds[generator.choice(names)], self.seeds[generator.choice(names)], generator))

    def _header(self, path: Path, generator: random.Random) -> None:
        """Another shape, place, type, name or configuration in the header of a safetensors file."""
        data = self.seeds[generator.choice(("ours.safetensors", "eight.safetensors"))]
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        meta = header["__metadata__"]
        name = generator.choice([name for name in header if name != "__metadata__"])
        match generator.randrange(9):
            case 0:
                header[name]["shape"] = mutate_value(header[name]["shape"], generator)
            case 1:
                header[name]["dtype"] = generator.choice(DTYPES)
            case 2:
                header[name]["data_offsets"] = mutate_value(header[name]["data_offsets"], generator)
            case 3:
                header[generator.choice(("x", "", "x" * 5000, "../x", "\x1b[2J", "module." + name))] = header.pop(name)
            case 4:
                other = generator.choice([other for other in header if other != "__metadata__"])
                header[name], header[other] = header[other], header[name]
            case 5:
                meta[generator.choice(list(meta))] = str(generator.choice(VALUES))
            case 6:
                header["__metadata__"] = mutate_value(meta, generator)
            case _:
                meta["segclip_config"] = _text(mutate_value(json.loads(meta["segclip_config"]), generator))
        written = json.dumps(header).encode("utf-8", "surrogatepass")
        length = len(written) if generator.random() < 0.9 else generator.choice((0, 1, 1 << 31, 1 << 62, len(data)))
        path.write_bytes(struct.pack("<Q", length) + written + data[8 + size :])

    def _folder(self, path: Path, generator: random.Random) -> None:
        """A folder of save_pretrained, with another configuration or other weights."""
        shutil.copytree(self.folder / "saved", path)
        config, weights = path / "config.json", path / "model.safetensors"
        match generator.randrange(4):
            case 0:
                config.write_bytes(mutate(config.read_bytes(), b"{}" * 40, generator))
            case 1:
                weights.write_bytes(mutate(weights.read_bytes(), self.seeds["ours.safetensors"], generator))
            case _:
                config.write_text(_text(mutate_value(json.loads(config.read_text()), generator)))

    def _values(self, path: Path, generator: random.Random) -> None:
        """Right names, and numbers or shapes that are none."""
        state = dict(generator.choice(self.states))
        name = generator.choice(sorted(state))
        tensor = state[name].clone()
        match generator.randrange(7):
            case 0 if tensor.is_floating_point():
                tensor.view(-1)[generator.randrange(tensor.numel())] = generator.choice((float("nan"), float("inf")))
                state[name] = tensor
            case 1:
                kinds = (torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64, torch.int8)
                state[name] = tensor.to(generator.choice(kinds))
            case 2:
                state[name] = torch.zeros(1).expand(generator.choice(((1 << 20,) * 2, (1 << 40,), (3, 3))))
            case 3:
                state[name] = generator.choice((tensor[None], tensor.flatten(), tensor[:0] if tensor.ndim else tensor))
            case 4:
                state[name] = tensor.to_sparse() if tensor.is_floating_point() and tensor.ndim else tensor
            case 5:
                state = {f"{key}{generator.choice(('', '.x', 'module.'))}": value for key, value in state.items()}
            case _:
                state |= {f"layers.{i}": state[name] for i in range(generator.choice((1, 1000, 20_000)))}
        torch.save(generator.choice((state, {"state_dict": state}, {"model": state}, [state], {"x": state})), path)

    def _pickle(self, path: Path, generator: random.Random) -> None:
        """A pickle that calls something."""
        made = self.folder / "made-by-code"
        function = generator.choice(GLOBALS)
        argument = f"mkdir {made}" if function in (os.system, eval) else str(made)
        call = Call(function, *((argument, "w") if function in (open, getattr) else (argument,)))
        content = generator.choice((call, {"x": call}, {**self.openai, "x": call}, [call]))
        if generator.random() < 0.5:
            torch.save(content, path, _use_new_zipfile_serialization=generator.random() < 0.5)
        else:
            path.write_bytes(pickle.dumps(content, protocol=generator.choice((2, 3, 4, 5))))

    def _zip(self, path: Path, generator: random.Random) -> None:
        """A torch archive whose members are others: packed, huge, gone, double, with other names."""
        name = generator.choice(("zip-0.pt", "zip-1.pt", "zip-2.pt", "archive.pt"))
        way = generator.randrange(6)
        with zipfile.ZipFile(io.BytesIO(self.seeds[name])) as old, zipfile.ZipFile(path, "w") as new:
            members = old.infolist()
            chosen = generator.randrange(len(members))
            for at, member in enumerate(members):
                data, kind = old.read(member), zipfile.ZIP_STORED
                if at == chosen:
                    match way:
                        case 0:
                            continue
                        case 1:
                            data, kind = bytes(generator.choice((1 << 10, 1 << 20, 1 << 26))), zipfile.ZIP_DEFLATED
                        case 2:
                            data = mutate(data, self.seeds[name], generator)
                        case 3:
                            member.filename = generator.choice(("../x", "/x", "x", member.filename + "x", "x" * 3000))
                        case 4:
                            kind = generator.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
                        case _:
                            new.writestr(member.filename, mutate(data, b"", generator))
                new.writestr(member.filename, data, kind)


def _text(value: Any) -> str:
    """JSON, also such as JSON does not allow."""
    return json.dumps(value)
