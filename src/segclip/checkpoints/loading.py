"""Weights by name or file: `load` reads every format we know, `convert` writes ours."""

import difflib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from filelock import FileLock
from torch import Tensor

from segclip.checkpoints import authors, native, openai, transformers
from segclip.checkpoints.at_hand import WEIGHTS_FILES, at_hand
from segclip.checkpoints.download import DownloadError, check_sha256, download, forget_sha256, keep_sha256
from segclip.checkpoints.hub import fetch_weights
from segclip.checkpoints.native import (
    EXPECTED,
    FORMAT,
    MINI,
    WEIGHTS_FILE,
    CheckpointError,
    listing,
    load_state,
    save_model,
)
from segclip.checkpoints.strangers import refuse_strangers
from segclip.checkpoints.tensors import read_tensors
from segclip.model.segclip import SegCLIP
from segclip.utils.devices import pick_device
from segclip.utils.files import cache_folder

log = logging.getLogger(__name__)


@runtime_checkable
class Adapter(Protocol):
    """A format of weights: a module with these."""

    def recognises(self, state: Mapping[str, Tensor], /) -> bool:
        """Whether tensors under these names are of this format."""
        ...

    def read(self, state: Mapping[str, Tensor], path: Path, /) -> SegCLIP:
        """The model; the file's path is for errors, and for what lies beside it. Raises CheckpointError."""
        ...


# A new format is a module beside these, and a line here; the first that recognises the tensors reads them.
ADAPTERS: dict[str, Adapter] = {
    "segclip": native,
    "authors": authors,
    "openai": openai,
    "transformers": transformers,
}

NAMES = ("mini", "vit-b16")
AUTHORS_URL = "https://github.com/ArrowLuo/SegCLIP/releases/download/checkpoint_v0/segclip.bin"
AUTHORS_SHA256: str | None = None  # not known here: nobody who wrote this has downloaded it
# Of torch's DataParallel and DistributedDataParallel, of Lightning and other trainers, of torch.compile.
PREFIXES = re.compile(r"^((module|model|_orig_mod)\.)+|(?<=\.)_orig_mod\.")
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
FILE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")


def load(name_or_path: str | os.PathLike[str], device: str | torch.device = "auto") -> SegCLIP:
    """A model in evaluation mode, float32, every parameter trainable.

    Args:
        name_or_path: "mini" (embedded in the package); "vit-b16" (the authors' published weights: downloaded once,
            converted and kept in the cache folder); a local file or folder of any format: ours, the authors'
            segclip.bin, OpenAI's CLIP, OpenCLIP, transformers' CLIPModel (in one file, or several with an index); or a
            Hugging Face hub id "org/name". `segclip models` lists what there is.
            Weights of a CLIP alone give a model without centers, of which each patch is a region, by the dense head
            "naclip" (others: `Segmenter(head=...)`). What their tensors do not tell, activation and heads, is read of
            the open_clip_config.json or config.json beside them.
        device: where the model goes, as torch names it; "auto": to CUDA or else Apple's GPU where there is one, or
            else the processor.

    Raises:
        CheckpointError: (a ValueError) an unknown name, or a file that is damaged or of another model.
        ValueError: a device that is not there.
    """
    target = pick_device(device)  # before a model is read or downloaded for nothing
    return read_file(locate(name_or_path)).to(target)


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of weights that a name stands for, downloaded if need be. Arguments and errors: see `load`."""
    name = os.fspath(name_or_path)
    if name == "mini":
        return MINI
    if name == "vit-b16":
        return _fetch_authors()
    path = Path(name).expanduser()
    if name and os.path.exists(
        path
    ):  # unlike Path.exists, takes names of any length; an empty name is not the current folder
        return _weights_in(path) if path.is_dir() else path
    if HUB_ID.fullmatch(name) and not name.endswith(FILE_SUFFIXES):
        return fetch_weights(name)
    raise CheckpointError(_unknown(name))


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], *, eight_bit: bool = False) -> None:
    """Read weights of any format that `load` takes and write them in ours, in 8 bits if asked (see `save_model`).

    Raises:
        CheckpointError: the source cannot be read, the target cannot be written, or both are the same file.
    """
    source, target = Path(source), Path(target)
    if source.exists() and target.exists() and source.samefile(target):
        raise CheckpointError(f"{target}: is the source itself, which is never overwritten; name another target")
    if target.is_dir():
        raise CheckpointError(f"{target}: is a folder; name the file to write, such as {target / WEIGHTS_FILE}")
    save_model(read_file(locate(source)), target, eight_bit=eight_bit)


def read_file(path: Path) -> SegCLIP:
    """The model in a file of any format, told from its content.

    Raises:
        CheckpointError: damaged, or no format we know.
    """
    state, metadata = read_tensors(path)
    if metadata.get("format") == FORMAT:
        return load_state(state, metadata, path)
    adapter, state = find_adapter(state, path)
    return adapter.read(state, path)


def find_adapter(state: Mapping[str, Tensor], path: Path) -> tuple[Adapter, dict[str, Tensor]]:
    """The adapter that recognises the tensors of a file, and the tensors as it takes them.

    Raises:
        CheckpointError: none does.
    """
    count = len(state)
    state = {PREFIXES.sub("", name): tensor for name, tensor in state.items()}
    if len(state) < count:
        raise CheckpointError(
            f"{path}: two tensors for one weight, with and without `module.`, `model.` or `_orig_mod.`; {EXPECTED}"
        )
    refuse_strangers(state, path)
    for adapter in ADAPTERS.values():
        if adapter.recognises(state):
            return adapter, state
    raise CheckpointError(f"{path}: looks like weights of another model, tensors {listing(state)}; {EXPECTED}")


def _fetch_authors() -> Path:
    """The authors' weights in our format, from the cache folder or else from their release."""
    folder = cache_folder()
    ours, theirs = folder / "vit-b16.safetensors", folder / "segclip.bin"
    if ours.exists():
        check_sha256(ours)
        return ours
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror}); set SEGCLIP_CACHE to another") from error
    with FileLock(folder / "vit-b16.lock"):
        if ours.exists():  # another process was faster
            check_sha256(ours)
            return ours
        if not theirs.exists():
            log.warning(
                "downloading the SegCLIP authors' weights, %s, to %s. They were published without a licence: nothing "
                "grants you the right to use them or to pass them on; ask the authors where that matters",
                AUTHORS_URL,
                folder,
            )
            try:
                download(AUTHORS_URL, theirs, sha256=AUTHORS_SHA256)
            except DownloadError as error:
                raise DownloadError(f"{error}; {at_hand()}") from error
        try:
            model = read_file(theirs)
        except CheckpointError:
            theirs.unlink()  # or it would be found broken for ever
            raise
        forget_sha256(ours)  # of an earlier file of this name
        save_model(model, ours)
        keep_sha256(ours)
        theirs.unlink()
    return ours


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: a folder without {' or '.join(WEIGHTS_FILES)}; {EXPECTED}")


def _unknown(name: str) -> str:
    known = ", ".join(NAMES)
    if name.endswith(FILE_SUFFIXES) or "/" in name or os.sep in name:
        return f"{name}: no such file; give an existing file or folder, a hub id org/name, or one of {known}"
    close = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.4)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown model {name!r}{hint}; known are {known}, or give a file, a folder or a hub id org/name"
