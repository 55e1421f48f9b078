"""Models on the Hugging Face hub: fetch a file of one, or put one there."""

import os
import tempfile
from pathlib import Path
from typing import Any

from segclip.checkpoints.native import CheckpointError, load_model, save_model
from segclip.model.segclip import SegCLIP

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"  # for people and the hub's counter of downloads; we read the copy inside the weights


def fetch(repo_id: str, names: tuple[str, ...] = (WEIGHTS_FILE,), **options: Any) -> Path:
    """Download the first of these files that a hub repository has, or take it from the hub's cache.

    Args:
        repo_id: "org/name".
        names: files, the preferred one first.
        options: revision, token, cache_dir, local_files_only ... of `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: no such repository or file, no network, no permission.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    reason = ""
    for name in names:
        try:
            return Path(hf_hub_download(repo_id, name, **options))
        except EntryNotFoundError as error:  # not in the repository; or no network, and not in the cache
            reason = reason or _first_line(error)
        except (HFValidationError, OSError) as error:
            reason = _first_line(error)
            break
    raise CheckpointError(
        f"{repo_id}: {' or '.join(names)} cannot be fetched from the Hugging Face hub ({reason}); "
        "check the name and the network, or give a local file"
    )


def from_pretrained(name_or_folder: str | os.PathLike[str], **options: Any) -> SegCLIP:
    """The model in a folder that `save_folder` wrote, or in a hub repository; see `fetch` for the options."""
    if (folder := Path(name_or_folder)).is_dir():
        return load_model(folder / WEIGHTS_FILE)
    return load_model(fetch(os.fspath(name_or_folder), **options))


def save_folder(model: SegCLIP, folder: Path) -> None:
    """Write the weights and, beside them, a readable copy of the configuration."""
    save_model(model, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(model.config.to_json() + "\n", encoding="utf-8")


def push(model: SegCLIP, repo_id: str, *, private: bool | None, token: str | None, commit_message: str) -> str:
    """Create the repository if need be and upload the model; gives the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save_folder(model, Path(folder))
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
