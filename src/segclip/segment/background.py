"""The values that `background` takes everywhere, and the check of them."""

from typing import Literal

Background = Literal["auto"] | float | None


def check_background(value: object) -> Background:
    """Check a value for `background`: "auto", "none" or None, or a number in 0..1, which may be a str.

    Raises:
        ValueError: anything else.
    """
    text = value.strip().lower() if isinstance(value, str) else None
    if text == "auto":
        return "auto"
    if value is None or text == "none":
        return None
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"background {value!r:.40}; give auto, none (None in Python), or a number in 0..1")
    return number


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
