"""Write docs/commands.md, every command with its options, from `--help`: python runs/commands.py [FILE]"""

import contextlib
import io
import os
import sys
import textwrap
from pathlib import Path

from segclip.cli import COMMANDS, main
from segclip.train.recipes import RECIPES
from segclip.utils.files import atomic

WIDTH = 100  # characters per line
INTRODUCTION = """# Commands

The output of `segclip COMMAND --help`. `python -m segclip` is the same as `segclip`. The exit code is 0 if all was
done, 1 if some photos failed, 2 if nothing could be done.
"""


def help_of(*arguments: str) -> str:
    """What a command prints for --help."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([*arguments, "--help"])
    assert code == 0, f"segclip {' '.join(arguments)} --help: exit code {code}"
    return printed.getvalue().strip()


def section(*words: str) -> str:
    """A command's section of the page; lines that `--help` leaves to the terminal to wrap are wrapped."""
    lines = [line.rstrip() for line in help_of(*words).splitlines()]
    text = "\n".join(line if line.startswith(" ") else textwrap.fill(line, WIDTH) for line in lines)
    return f"## segclip {' '.join(words)}\n\n```text\n{text}\n```\n"


def page() -> str:
    """The page; the recipes of `segclip train` are commands of their own."""
    names = sorted([(name,) for name in COMMANDS] + [("train", recipe) for recipe in RECIPES])
    return "\n".join([INTRODUCTION, *(section(*words) for words in names)])


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(WIDTH)
    with atomic(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/commands.md")) as file:
        file.write_text(page())
