"""Files of a model on the Hugging Face hub, downloaded one by one into the hub's own cache.

Configurations come through the hub's library. It begins a broken download anew, so large files are brought by our own
download, which goes on where it broke and checks size and sha256, to where the library then finds them whole.
"""

import logging
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils import build_hf_headers

from segclip.checkpoints.at_hand import WEIGHTS_FILES, at_hand, cached_weights
from segclip.checkpoints.clip_config import CONFIG_FILES, PIXELS_FILE, read_one_config
from segclip.checkpoints.download import DownloadError, download
from segclip.checkpoints.native import CheckpointError
from segclip.checkpoints.sharded import INDEX_SUFFIX, part_names
from segclip.utils.messages import shorten

log = logging.getLogger(__name__)

LARGEST = 16 << 30  # bytes of a file; the largest CLIP that is known, ViT-bigG/14, has about 10 GB
BLOB = re.compile(r"[0-9A-Za-z][\w.-]{0,199}")  # what the hub calls a version of a file, and its cache the file
SHA256 = re.compile(r"[0-9a-f]{64}")  # what it calls large files


def fetch_weights(repo_id: str) -> Path:
    """The weights of the repository "org/name": its configurations first, then the smallest file that is enough.

    Raises:
        CheckpointError: no such repository or file, no network, no permission, a broken download; a configuration of
            what cannot be opened, of which no weights are downloaded.
    """
    configs = [path for name in CONFIG_FILES if (path := _fetch_config(repo_id, name)) is not None]
    _check_configs([path for path in configs if path.name != PIXELS_FILE])
    try:
        name, metadata = _choose(repo_id)
        path = _fetch_large(repo_id, name, metadata)
        if name.endswith(INDEX_SUFFIX):
            for part in part_names(path):
                _fetch_large(repo_id, part)
        return path
    except CheckpointError:
        raise
    except Exception as error:  # of httpx, requests or the disk, by the version of huggingface-hub
        if (cached := cached_weights(repo_id)) is not None:
            return cached
        raise _not_fetched(repo_id, _first_line(error)) from error


def _fetch_config(repo_id: str, name: str) -> Path | None:
    """A small file of a repository, None where it has none of this name."""
    try:
        return Path(hf_hub_download(repo_id, name))
    except EntryNotFoundError as error:
        # Without a network, only where the weights are in the cache may one be missing: they came after it.
        if isinstance(error, LocalEntryNotFoundError) and cached_weights(repo_id) is None:
            raise _not_fetched(repo_id, _first_line(error)) from error
        log.debug("%s: no %s (%s)", repo_id, name, _first_line(error))
        return None
    except Exception as error:  # of httpx, requests or the disk, by the version of huggingface-hub
        raise _not_fetched(repo_id, _first_line(error)) from error


def _check_configs(paths: Sequence[Path]) -> None:
    """Raise what is wrong with the first of these configurations, unless another is of a CLIP, or they tell nothing."""
    refused = []
    for path in paths:
        try:
            if read_one_config(path) is not None:
                return
        except CheckpointError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _choose(repo_id: str) -> tuple[str, HfFileMetadata]:
    """The file of weights to take: of whole safetensors the smallest, else the first that the repository has."""
    whole = [name for name in WEIGHTS_FILES if name.endswith(".safetensors")]
    if found := [(name, metadata) for name in whole if (metadata := _ask(repo_id, name)) is not None]:
        return min(found, key=lambda one: one[1].size or 0)
    for name in WEIGHTS_FILES:
        if name not in whole and (metadata := _ask(repo_id, name)) is not None:
            return name, metadata
    raise _not_fetched(repo_id, f"it has none of {', '.join(WEIGHTS_FILES)}")


def _ask(repo_id: str, name: str) -> HfFileMetadata | None:
    """What the hub says of a file, None where there is none. Raises whatever the hub's library does, without a hub."""
    try:
        return get_hf_file_metadata(hf_hub_url(repo_id, name))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def _fetch_large(repo_id: str, name: str, metadata: HfFileMetadata | None = None) -> Path:
    """A file of weights, put by our own download where the hub's library looks for it."""
    metadata = metadata or _ask(repo_id, name)
    if metadata is None:
        raise _not_fetched(repo_id, f"it has no {name}, which its index lists")
    version, size, commit = metadata.etag or "", metadata.size, metadata.commit_hash
    cached = try_to_load_from_cache(repo_id, name, revision=commit) if commit else None
    if not isinstance(cached, str) and BLOB.fullmatch(version) and size:
        folder = repo_folder_name(repo_id=repo_id, repo_type="model")
        lock = Path(constants.HF_HUB_CACHE, ".locks", folder, f"{version}.lock")  # the library's own
        blob = Path(constants.HF_HUB_CACHE, folder, "blobs", version)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not blob.exists():
                _download_blob(repo_id, name, metadata, blob)
    return Path(hf_hub_download(repo_id, name))


def _download_blob(repo_id: str, name: str, metadata: HfFileMetadata, blob: Path) -> None:
    size, version = metadata.size or 0, metadata.etag or ""
    if size > LARGEST:
        raise _not_fetched(repo_id, f"{name} has {size:,} bytes; expected at most {LARGEST:,}")
    asked, given = (urllib.parse.urlsplit(url) for url in (hf_hub_url(repo_id, name), metadata.location))
    token = build_hf_headers().get("authorization") if asked[:2] == given[:2] else None  # for the hub itself alone
    try:
        download(
            metadata.location,
            blob,
            size=size,
            sha256=version if SHA256.fullmatch(version) else None,
            headers={"Authorization": token} if token else {},
            title=f"{repo_id}: {name}",
        )
    except DownloadError as error:
        raise _not_fetched(repo_id, f"{name}: {error.reason}") from error


def _not_fetched(repo_id: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{repo_id}: cannot be fetched from the Hugging Face hub ({shorten(reason, 130)}); check the name and the "
        f"network and try again, or give a local file; {at_hand()}"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
