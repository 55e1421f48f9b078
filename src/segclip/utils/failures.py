"""What could not be done: a value, where one bad item of many must not stop the others; and what was broken off."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failed:
    """An item that could not be done, and why.

    Attributes:
        item: what it is called: a path, a label, an address.
        reason: in a line, for people.
    """

    item: str
    reason: str


class Stopped(Exception):
    """The work was asked to stop (SIGTERM), and has saved its state."""
