"""Options that commands share."""

from pathlib import Path
from typing import Annotated

import tyro

from segclip.model.dense import HEADS
from segclip.segment.protocols import PROTOCOLS
from segclip.text.label_files import read_labels
from segclip.text.labels import Labels, check_labels, split_labels

OUT = Path("segclip-out")  # in the folder where the command is given


def _list_protocols(default: str) -> str:
    return f"(one of {', '.join(PROTOCOLS)}; default: {default})"  # with those that were added to the table


def _list_heads(default: str) -> str:
    return f"(one of {', '.join(HEADS)}; default: the model's own)"


HeadName = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=_list_heads)]


def gather_labels(labels: tuple[str, ...], file: Path | None) -> Labels:
    """The labels of `--labels`, and then those of `--labels-file`, checked.

    Raises:
        ValueError: none at all, one that cannot be used, or a file that cannot be read.
    """
    if not labels and file is None:
        raise ValueError("no labels; give --labels cat dog, or --labels-file FILE with a label a line")
    return check_labels((*split_labels(labels), *(read_labels(file) if file else ())))


Out = Annotated[Path, tyro.conf.arg(aliases=("-o",))]
ProtocolName = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=_list_protocols)]
