"""Where what is fetched is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$SEGCLIP_CACHE, or segclip in $XDG_CACHE_HOME, or ~/.cache/segclip."""
    if own := os.environ.get("SEGCLIP_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "segclip"
