"""Whatever else a file of weights may be gives a clear error, and none runs code."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State, to_transformers
from safetensors.torch import save_file
from torch import Tensor

from segclip.checkpoints import clip_weights, native, tensors, torchscript
from segclip.checkpoints.loading import load
from segclip.checkpoints.native import CheckpointError
from segclip.model.segclip import SegCLIP


@pytest.mark.parametrize("keep", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_state_dicts(authors: State, tmp_path: Path, keep: float, legacy: bool) -> None:
    path = tmp_path / "segclip.bin"
    torch.save(authors, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"segclip\.bin: looks like a .*truncated .*expected weights of SegCLIP"):
        load(path)


def test_truncated_and_damaged_archives(archive: Path) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load(archive)
    middle = len(whole) // 2
    archive.write_bytes(whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    with pytest.raises(CheckpointError, match=r"damaged or truncated torch file .BadZipFile: Bad CRC"):
        load(archive)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"Dear reader,\nthese are no weights\n", "a text file .it begins with 'Dear reader"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG picture"),
        (b"\x00\xfe\xfd\xfc" * 8, "no known format"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "segclip.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"segclip\.bin: looks like {message}.*expected weights of SegCLIP"):
        load(path)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("holiday.jpg", b"")
    with pytest.raises(CheckpointError, match=r"a zip archive of other files: 1 \(holiday\.jpg\)"):
        load(tmp_path / "photos.zip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"visual.layer1.0.conv1.weight": torch.zeros(2, 2)}, "OpenAI's CLIP with a ResNet image tower"),
        (
            {f"layers.{i}.weight": torch.zeros(2) for i in range(7)},
            r"weights of another model, tensors 7 \(layers\.0\.weight, ",
        ),
        ({"epoch": 3}, r"a Python dict without tensors, keys 1 \(epoch\)"),
        (torch.zeros(3), "a saved Tensor"),
        ([1, 2], "a saved list"),
    ],
)
def test_weights_of_other_models(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=rf"other\.pt: looks like {message}.*expected weights of SegCLIP"):
        load(tmp_path / "other.pt")


def changed(state: State, **changes: Tensor | None) -> State:
    state = {**state, **{name.replace("__", "."): t for name, t in changes.items() if t is not None}}
    return {name: tensor for name, tensor in state.items() if changes.get(name.replace(".", "__"), tensor) is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip__ln_final__bias": None}, r"missing: 1 \(text\.norm_final\.bias\)"),
        ({"clip__surplus": torch.zeros(1)}, r"extra: 1 \(surplus\)"),
        (
            {"clip__ln_final__bias": torch.zeros(3)},
            r"wrong shapes: 1 \(text\.norm_final\.bias \(3,\), expected \(64,\)",
        ),
        ({"clip__visual__conv1__weight": None}, r"missing: image\.tower\.patch_embed\.weight"),
        ({"clip__visual__proj": torch.zeros(3)}, r"image\.projection has the shape \(3,\); expected 2 axes"),
        ({"clip__visual__positional_embedding": torch.zeros(40, 128)}, "40 image positions; expected .* a square grid"),
        ({"clip__positional_embedding": torch.zeros(77, 65)}, "wrong shapes"),
        ({"clip__visual__conv1__weight": torch.zeros(100, 3, 16, 16)}, "image.width 100 is not a multiple of 64"),
    ],
)
def test_wrong_tensors_in_the_authors_format(
    authors: State, tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    torch.save(changed(authors, **changes), tmp_path / "segclip.bin")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "segclip.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ln_final__bias": None, "visual__ln_pre__bias": None},
            r"missing: 2 \(image\.tower\.norm_pre\.bias, ",
        ),
        ({"visual__surplus": torch.zeros(1)}, r"extra: 1 \(visual\.surplus\)"),
        ({"visual__ln_post__bias": torch.zeros(1)}, "wrong shapes: 1"),
        (
            {"visual__transformer__resblocks__5__ln_1__bias": None},
            r"missing: 1 \(image\.tower\.trunk\.5\.norm1",
        ),
    ],
)
def test_wrong_tensors_in_openais_format(
    openai: State, tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    torch.save(changed(openai, **changes), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "clip.pt")


def test_half_of_transformers_clip(openai: State, tmp_path: Path) -> None:
    vision = {name: t for name, t in to_transformers(openai).items() if name.startswith("vis")}
    save_file(vision, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"looks like an image tower alone .* without a text tower; give the whole"
    ):
        load(tmp_path)
    whole = to_transformers(openai)
    del whole["text_model.encoder.layers.0.self_attn.k_proj.bias"]
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: 1 .*extra: 2 \(text\.blocks\.0\.self_attn\.q_proj\.bias"):
        load(tmp_path)


class Bomb:
    """A pickle that makes a folder when it is loaded by pickle itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle", "archive"])
def test_a_hostile_file_runs_nothing(archive: Path, tmp_path: Path, kind: str) -> None:
    bomb, path = {"clip.visual.proj": Bomb(tmp_path / "exploded")}, tmp_path / "segclip.bin"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    elif kind == "archive":
        with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                target.writestr(name, pickle.dumps(bomb) if name.endswith("data.pkl") else source.read(name))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(CheckpointError, match=r"segclip\.bin: looks like a (pickle that would run|damaged)"):
        load(path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / "exploded").exists()  # the bomb was live


def nested_modules(depth: int) -> bytes:
    """A pickle of a module that names a part twice, which names a part twice, and so on: 2**depth paths."""
    program = b"\x80\x02c__torch__\nA\n)Rq\x00"
    for level in range(1, depth + 1):
        part = b"h" + bytes([level - 1])
        program += b"c__torch__\nA\n)R}(X\x01\0\0\0a" + part + b"X\x01\0\0\0b" + part + b"ubq" + bytes([level])
    return program + b"."


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001+1\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x07\x00\x00\x00__dict__cos\nsystem\nsb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x01K\x01tR.",
        b"\x80\x02c__torch__.x\nModel\nK\x05\x85R.",
        b"\x80\x02K\x01.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # object 2147483647: an unpickler makes room for as many
        nested_modules(40),
    ],
)
def test_hostile_archives(archive: Path, tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "hostile.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("/data.pkl") else source.read(name))
    with pytest.raises(CheckpointError, match="looks like a"):
        load(path)


def fail(*_: Any, **__: Any) -> Any:
    raise AssertionError("its content must not be read")


@pytest.mark.parametrize("kind", ["torch.save", "TorchScript"])
def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb/data.pkl", pickle.dumps({}, protocol=2))
        file.writestr("bomb/constants.pkl" if kind == "TorchScript" else "bomb/version", b"3")
        file.writestr("bomb/data/0", bytes(20 << 20))
    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(tensors, "read_torchscript", fail)
    with pytest.raises(CheckpointError, match=r"looks like a zip bomb: \d\d,\d+ bytes that unpack to 20,9"):
        load(tmp_path / "bomb.pt")


def test_an_archive_behind_other_data(archive: Path) -> None:
    """Two readers of zip archives may find different files in it."""
    archive.write_bytes(b"PK\x05\x06" + bytes(96) + archive.read_bytes())
    with pytest.raises(CheckpointError, match="a zip archive with other data before it"):
        load(archive)


def test_one_number_that_poses_as_many(tmp_path: Path) -> None:
    torch.save({"clip.visual.proj": torch.zeros(1).expand(8 << 20)}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=r"m\.bin: [\d,]+ bytes with tensors of 33,554,432 bytes"):
        load(tmp_path / "m.bin")


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, tensors):
        monkeypatch.setattr(module, "MOST_TENSORS", 3)
    state = {f"clip.{i}": torch.zeros(1) for i in range(4)}
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "m.safetensors")
    for name in ("m.bin", "m.safetensors"):
        with pytest.raises(CheckpointError, match="4 tensors; expected at most 3"):
            load(tmp_path / name)


def test_a_header_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LONGEST_HEADER", 100)
    (tmp_path / "m").write_bytes(struct.pack("<Q", 101) + b"{" + b" " * 99 + b"}")
    with pytest.raises(CheckpointError, match="a header of 101 bytes; expected at most 100"):
        load(tmp_path / "m")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: no regular file"):
        load(tmp_path / "pipe")


def test_nothing_is_made_of_tensors_that_do_not_fit(
    openai: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few bytes can ask for a model of many: a patch embedding of one pixel and 65536 channels."""

    def on_paper(config: Any) -> SegCLIP:
        assert torch.empty(0).is_meta
        return SegCLIP(config)

    monkeypatch.setattr(clip_weights, "SegCLIP", on_paper)
    torch.save(changed(openai, visual__conv1__weight=torch.zeros(65536, 3, 1, 1)), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="wrong shapes"):
        load(tmp_path / "clip.pt")


PROJECTION = torch.ones(128, 64)


@pytest.mark.parametrize(
    ("projection", "message"),
    [
        (PROJECTION.int(), r"no floating-point numbers: 1 \(image\.projection int32\)"),
        (PROJECTION.bool(), "image.projection bool"),
        (PROJECTION.to(torch.complex64), "image.projection complex64"),
        (PROJECTION * torch.nan, r"NaN or infinite weights in 1 \(image\.projection\)"),
        (PROJECTION.half() * torch.inf, "NaN or infinite weights"),
        (PROJECTION.double() * 1e300, "NaN or infinite weights"),  # as float32
    ],
)
def test_weights_that_no_model_computes_with(
    authors: State, openai: State, tmp_path: Path, projection: Tensor, message: str
) -> None:
    torch.save(changed(authors, clip__visual__proj=projection), tmp_path / "segclip.bin")
    torch.save(changed(openai, visual__proj=projection), tmp_path / "clip.pt")
    torch.save(to_transformers(changed(openai, visual__proj=projection)), tmp_path / "pytorch_model.bin")
    for name in ("segclip.bin", "clip.pt", "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / name)


def test_two_tensors_for_one_weight(authors: State, tmp_path: Path) -> None:
    torch.save({**authors, "ln_final.bias": authors["clip.ln_final.bias"]}, tmp_path / "a.bin")
    torch.save({**authors, "module.clip.ln_final.bias": authors["clip.ln_final.bias"]}, tmp_path / "b.bin")
    with pytest.raises(CheckpointError, match="several tensors for one weight"):
        load(tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="two tensors for one weight"):
        load(tmp_path / "b.bin")


@pytest.mark.parametrize("name", ["clip.visual." + "x" * 100_000, "\x1b[2J\n" * 20_000])
def test_messages_stay_short_and_printable(authors: State, tmp_path: Path, name: str) -> None:
    torch.save({**authors, name: torch.zeros(1)}, tmp_path / "a.bin")
    torch.save({name: 1}, tmp_path / "b.bin")
    save_file({name: torch.zeros(1)}, tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes(struct.pack("<Q", len(name) + 2) + b'{"' + name.encode())
    for file in tmp_path.iterdir():
        with pytest.raises(CheckpointError) as caught:
            load(file)
        assert len(str(caught.value)) <= 1000 and str(caught.value).isprintable(), file.name


def test_a_name_of_any_length() -> None:
    with pytest.raises(CheckpointError, match=r"no such file|unknown model"):
        load("x" * 5000)


def test_archives_of_long_names_end() -> None:
    """A module that is a part of itself."""
    module = type("Attributes", (), {})()
    vars(module)["part"] = module
    with pytest.raises(ValueError, match="no tree of modules"):
        list(torchscript._named_tensors(module))
