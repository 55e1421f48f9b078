"""Options that commands share."""

from typing import Annotated

import tyro

from segclip.segment.protocols import PROTOCOLS


def _list_protocols(default: str) -> str:
    return f"(one of {', '.join(PROTOCOLS)}; default: {default})"  # with those that were added to the table


ProtocolName = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=_list_protocols)]
