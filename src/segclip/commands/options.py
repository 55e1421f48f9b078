"""Options that commands share."""

from typing import Annotated

import tyro

from segclip.model.dense import HEADS
from segclip.segment.protocols import PROTOCOLS


def _list_protocols(default: str) -> str:
    return f"(one of {', '.join(PROTOCOLS)}; default: {default})"  # with those that were added to the table


def _list_heads(default: str) -> str:
    return f"(one of {', '.join(HEADS)}; default: the model's own)"


HeadName = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=_list_heads)]
ProtocolName = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=_list_protocols)]
