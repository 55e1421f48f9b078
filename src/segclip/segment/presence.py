"""The values that `presence` takes everywhere, and the check of them."""

from typing import Literal

Presence = Literal["auto"] | None


def check_presence(value: object) -> Presence:
    """Check a value for `presence`: "auto", or "none" or None.

    Raises:
        ValueError: anything else.
    """
    text = value.strip().lower() if isinstance(value, str) else None
    if text == "auto":
        return "auto"
    if value is None or text == "none":
        return None
    raise ValueError(f"presence {value!r:.40}; give auto, or none (None in Python) to look for every label")
