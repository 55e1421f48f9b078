"""Files of a model on the Hugging Face hub, downloaded into the hub's own cache."""

import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from segclip.checkpoints.native import CheckpointError

log = logging.getLogger(__name__)


def fetch_weights(repo_id: str, names: tuple[str, ...], beside: tuple[str, ...]) -> Path:
    """The first of these files that the repository "org/name" has.

    Args:
        repo_id: the repository.
        names: of weights, the best first.
        beside: further files that come beside it, as far as the repository has them.

    Raises:
        CheckpointError: no such repository or file, no network, no permission.
    """
    reason = ""
    for name in names:
        try:
            path = Path(hf_hub_download(repo_id, name))
            break
        except EntryNotFoundError as error:  # not in the repository; or no network, and not in the cache
            reason = reason or _first_line(error)
        except (HFValidationError, OSError) as error:
            raise _not_fetched(repo_id, names, _first_line(error)) from error
    else:
        raise _not_fetched(repo_id, names, reason)
    for name in beside:
        try:
            hf_hub_download(repo_id, name)
        except EntryNotFoundError:
            log.debug("%s has no %s", repo_id, name)
        except OSError as error:
            raise _not_fetched(repo_id, (name,), _first_line(error)) from error
    return path


def _not_fetched(repo_id: str, names: tuple[str, ...], reason: str) -> CheckpointError:
    return CheckpointError(
        f"{repo_id}: {' or '.join(names)} cannot be fetched from the Hugging Face hub ({reason}); "
        "check the name and the network, or give a local file"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
