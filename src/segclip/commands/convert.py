"""`segclip convert`: weights of any format that we read, into ours."""

from pathlib import Path
from typing import Annotated

import tyro

from segclip.checkpoints import loading
from segclip.commands.terminal import say


def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    eight_bit: bool = False,
) -> int:
    """Convert weights (the authors' segclip.bin, OpenAI's or transformers' CLIP) to segclip's safetensors.

    Args:
        source: File or folder to read.
        target: File to write, such as model.safetensors.
        eight_bit: Store weight matrices in 8 bits with a scale per row, about a quarter of the size.
    """
    loading.convert(source, target, eight_bit=eight_bit)
    say(f"wrote {target}")
    return 0
