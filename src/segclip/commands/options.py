"""Options that commands share."""

from pathlib import Path
from typing import Annotated

import tyro

from segclip.segment.protocols import PROTOCOLS
from segclip.text.labels import Labels, check_labels, split_labels

OUT = Path("segclip-out")  # in the folder where the command is given


def _list_protocols(default: str) -> str:
    return f"(one of {', '.join(PROTOCOLS)}; default: {default})"  # with those that were added to the table


def gather_labels(labels: tuple[str, ...], file: Path | None) -> Labels:
    """The labels of `--labels`, and then those of `--labels-file`, checked.

    Raises:
        ValueError: none at all, one that cannot be used, or a file that cannot be read.
    """
    if not labels and file is None:
        raise ValueError("no labels; give --labels cat dog, or --labels-file FILE with a label a line")
    return check_labels((*split_labels(labels), *(read_labels(file) if file else ())))


def read_labels(file: Path) -> tuple[str, ...]:
    """A label a line, UTF-8, commas and all; empty lines and those that begin with # are left out.

    Raises:
        ValueError: the file cannot be read, is no text, or has no label.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 ({error.reason}, byte {error.start}); save it as UTF-8") from None
    labels = tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))
    if not labels:
        raise ValueError(f"{file}: has no label; write one a line")
    return labels


Out = Annotated[Path, tyro.conf.arg(aliases=("-o",))]
ProtocolName = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=_list_protocols)]
