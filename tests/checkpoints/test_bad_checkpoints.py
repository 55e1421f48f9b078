"""Whatever else a file of weights may be gives a clear error, and none runs code."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State, to_transformers
from safetensors.torch import save_file
from torch import Tensor

from segclip.checkpoints.loading import load
from segclip.checkpoints.native import CheckpointError


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
    with pytest.raises(CheckpointError, match=r"missing: text\.positions"):
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


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001+1\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x07\x00\x00\x00__dict__cos\nsystem\nsb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x01K\x01tR.",
        b"\x80\x02c__torch__.x\nModel\nK\x05\x85R.",
        b"\x80\x02K\x01.",
    ],
)
def test_hostile_archives(archive: Path, tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "hostile.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("/data.pkl") else source.read(name))
    with pytest.raises(CheckpointError, match="looks like a"):
        load(path)
