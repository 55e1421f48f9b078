"""Files of a model on the Hugging Face hub, downloaded one by one into the hub's own cache.

The hub's library writes a download under its name only when it is whole and as long as was announced, and goes on with
what an earlier try left.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from segclip.checkpoints.at_hand import WEIGHTS_FILES, at_hand, place_of
from segclip.checkpoints.clip_config import CONFIG_FILES, PIXELS_FILE, read_one_config
from segclip.checkpoints.native import CheckpointError
from segclip.checkpoints.sharded import INDEX_SUFFIX, part_names
from segclip.utils.messages import shorten

log = logging.getLogger(__name__)


def fetch_weights(repo_id: str) -> Path:
    """The weights of the repository "org/name": its configurations first, then the smallest file that is enough.

    Raises:
        CheckpointError: no such repository or file, no network, no permission, a broken download; a configuration of
            what cannot be opened, of which no weights are downloaded.
    """
    configs = [path for name in CONFIG_FILES if (path := _fetch(repo_id, name, optional=True)) is not None]
    _check_configs([path for path in configs if path.name != PIXELS_FILE])
    reason = "it has none of these"
    for name in _by_size(repo_id, WEIGHTS_FILES):
        try:
            path = _fetch(repo_id, name)
        except EntryNotFoundError as error:  # not in the repository; or no network, and not in the cache
            reason = _first_line(error) if isinstance(error, LocalEntryNotFoundError) else reason
            continue
        assert path is not None
        if name.endswith(INDEX_SUFFIX):
            for part in part_names(path):
                _fetch(repo_id, part, why=f", which {name} lists")
        return path
    raise _not_fetched(repo_id, " or ".join(WEIGHTS_FILES), reason)


def _fetch(repo_id: str, name: str, *, optional: bool = False, why: str | None = None) -> Path | None:
    """A file of a repository.

    Args:
        repo_id: the repository.
        name: of the file.
        optional: None where there is no such file.
        why: it has to be there, in words for the message; else EntryNotFoundError says that it is not.
    """
    try:
        return Path(hf_hub_download(repo_id, name))
    except EntryNotFoundError as error:
        # Without a network, only where the weights are in the cache may one be missing: they came after it.
        if optional and (not isinstance(error, LocalEntryNotFoundError) or place_of(repo_id) == "cached"):
            log.debug("%s: no %s (%s)", repo_id, name, _first_line(error))
            return None
        if why is None and not optional:
            raise
        raise _not_fetched(repo_id, name + (why or ""), _first_line(error)) from error
    except Exception as error:  # of httpx, requests or the disk, by the version of huggingface-hub
        raise _not_fetched(repo_id, name, _first_line(error)) from error


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


def _by_size(repo_id: str, names: Sequence[str]) -> list[str]:
    """The same names, the smaller of two whole safetensors files first, as far as the hub tells their sizes."""
    sizes = {}
    for name in names:
        if name.endswith(".safetensors"):
            try:
                sizes[name] = get_hf_file_metadata(hf_hub_url(repo_id, name), timeout=10).size
            except EntryNotFoundError:
                continue
            except Exception as error:  # no network: then what is in the cache is taken, in the order given
                log.debug("%s: no size of %s (%s)", repo_id, name, _first_line(error))
                return list(names)
    known = sorted((name for name, size in sizes.items() if size), key=lambda name: sizes[name] or 0)
    return [*known, *(name for name in names if name not in known)]


def _not_fetched(repo_id: str, what: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{repo_id}: cannot be fetched from the Hugging Face hub: {what} ({shorten(reason, 300)}); check the name and "
        f"the network and try again, or give a local file; {at_hand()}"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
