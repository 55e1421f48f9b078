"""Protocols: how a photo is cut, labels are embedded, and regions become a label map.

One file each, as `protocol.Protocol` says. `PROTOCOLS["mine"] = MyProtocol()` makes another known to `Segmenter` and
the command line.
"""

from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.protocols.paper import PaperProtocol
from segclip.segment.protocols.protocol import Protocol

PROTOCOLS: dict[str, Protocol] = {
    "open": OpenProtocol(),
    "paper": PaperProtocol(),
    # arXiv 2202.11094 evaluates so: larger photos, overlapping windows.
    "groupvit": PaperProtocol(
        short=448,
        window=448,
        stride=224,
        threshold=0.95,
        published=(("voc2012", 0.95), ("context60", 0.35), ("coco-object", 0.95)),
    ),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of this name. Raises ValueError where there is none."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def name_of(protocol: Protocol) -> str:
    """A protocol's name in the table; of one that is not there, its class's."""
    return next((name for name, known in PROTOCOLS.items() if known == protocol), type(protocol).__name__)
