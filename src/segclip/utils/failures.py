"""What could not be done: a value, where one bad item of many must not stop the others; and what was broken off."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from segclip.utils.files import DISK_FULL

DEBUG = "SEGCLIP_DEBUG"  # an environment variable; set, an unexpected error shows its traceback
LONGEST = 500  # letters of an error: a library's may hold half a file

log = logging.getLogger(__name__)
T = TypeVar("T")


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


def attempt(item: Path | str, work: Callable[[], T], problem: str = "cannot be segmented") -> T | Failed:
    """The result of `work`, or why it failed: the boundary that no error of one item passes.

    What libraries raise for data from anywhere is no closed list, so every Exception counts, and not only our own. A
    full disk passes: no item is at fault, and the next would fare no better.

    Args:
        item: what the work is about; the reason names it.
        work: takes no arguments.
        problem: what to say of an error that does not tell people what is wrong.
    """
    try:
        return work()
    except Stopped:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        expected = isinstance(error, (ValueError, OSError, MemoryError, RuntimeError))
        loud = DEBUG in os.environ and not expected
        log.log(logging.WARNING if loud else logging.DEBUG, "%s failed", item, exc_info=True)
        return Failed(str(item), _describe(error, str(item), problem))


def _describe(error: Exception, item: str, problem: str) -> str:
    text = str(error) if len(str(error)) <= LONGEST else f"{str(error)[:LONGEST]}..."
    if isinstance(error, ValueError):
        return text if item in text else f"{item}: {text}"
    if isinstance(error, MemoryError):
        text = "out of memory; scale the photo down"
    elif isinstance(error, OSError):
        text = error.strerror or text
    elif not isinstance(error, RuntimeError):
        text = unexpected(type(error), text)
    return f"{item}: {problem}: {text}"


def unexpected(kind: type[Exception], text: str) -> str:
    """What to say of an error that nobody foresaw."""
    return f"unexpected {kind.__name__}: {text} (set {DEBUG}=1 to see where)"
