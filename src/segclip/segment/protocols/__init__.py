"""Protocols: how a photo is cut into windows, labels are embedded, and regions become a label map.

Each has a file and implements `protocol.Protocol`. `PROTOCOLS["mine"] = MyProtocol()` adds one for `Segmenter` and the
command line.
"""

from segclip.segment.protocols.dense import DenseProtocol
from segclip.segment.protocols.open import OpenProtocol
from segclip.segment.protocols.paper import PaperProtocol
from segclip.segment.protocols.protocol import Protocol
from segclip.utils.tables import choose

PROTOCOLS: dict[str, Protocol] = {
    "open": OpenProtocol(),
    "paper": PaperProtocol(),
    # The evaluation of arXiv 2202.11094: larger photos, overlapping windows.
    "groupvit": PaperProtocol(
        short=448,
        window=448,
        stride=224,
        threshold=0.95,
        published=(("voc2012", 0.95), ("context60", 0.35), ("coco-object", 0.95)),
    ),
    # The evaluation of dense heads over a CLIP, with NACLIP's settings (arXiv 2404.08181).
    "dense": DenseProtocol(),
}


def find_protocol(name: str) -> Protocol:
    """The protocol with this name. Raises ValueError if there is none."""
    return choose(PROTOCOLS, name, "protocol")


def name_of(protocol: Protocol) -> str:
    """A protocol's name in the table, or else the name of its class."""
    return next((name for name, known in PROTOCOLS.items() if known == protocol), type(protocol).__name__)
