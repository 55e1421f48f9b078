"""Tables of what can be chosen by name: plain dicts, to which anyone can add."""

from collections.abc import Mapping
from typing import TypeVar

from segclip.utils.messages import brief

T = TypeVar("T")


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of that name. Raises ValueError, saying `what` it was to be, where there is none."""
    if name not in table:
        raise ValueError(
            f"{what} {brief(name)}; known are {', '.join(table)}: choose one of them, or import the module that adds it"
        )
    return table[name]
