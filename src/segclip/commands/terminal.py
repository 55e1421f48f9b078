"""What commands tell people: on standard error, a line each, taken as it is."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from segclip.utils.failures import Failed

console = Console(stderr=True)
_errors = Console(stderr=True)  # which --quiet does not silence


def be_quiet(quiet: bool) -> None:
    """Say only what failed, or again everything."""
    console.quiet = quiet
    logging.getLogger("segclip").setLevel(logging.ERROR if quiet else logging.NOTSET)


def photo_progress(*, alone: bool) -> Progress:
    """A bar, not for a photo alone; where standard output is no terminal, what is printed there stays there."""
    return Progress(
        console=console, disable=alone or console.quiet, transient=True, redirect_stdout=sys.stdout.isatty()
    )


def say(text: str) -> None:
    """Print a line."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(what: str, why: str) -> None:
    """Print a line that begins with a word in red, also under --quiet."""
    _errors.print(f"[bold red]{what}:[/] {escape(' '.join(why.split()))}", highlight=False, soft_wrap=True)


def report(done: int, failures: Sequence[Failed], out: Path) -> int:
    """Say how many photos were written to `out`, and which failed.

    Returns:
        The exit code: 0, 1 where some failed, or 2 where nothing was written.
    """
    if done:
        say(f"{'1 photo' if done == 1 else f'{done} photos'} written to {out}")
    for failed in failures:
        complain("failed", failed.reason if failed.item in failed.reason else f"{failed.item}: {failed.reason}")
    return (1 if failures else 0) if done else 2
