"""Work of `prepare` that a photo ends, as a fault in a decoder does; by itself, as each process imports it."""

import os
import signal

from segclip.data.prepare import Chunk, Settings, pack_chunk
from segclip.data.shard_writer import Packed


def dying(chunk: Chunk, name: str) -> list[Packed]:
    """Pack, unless the name of a photo has `name` in it."""
    if any(name in pair.name for pair in chunk.pairs):
        os.kill(os.getpid(), signal.SIGKILL)
    return pack_chunk(chunk, Settings(superpixels="opencv"))
