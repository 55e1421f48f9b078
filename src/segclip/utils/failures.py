"""What could not be done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failed:
    """Something that could not be done: what it was done to, and why not."""

    item: str
    reason: str
