"""Transformer blocks as compiled programs: fewer and larger kernels, which read and write each value once."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from segclip.model.grouping import CenterBlock
from segclip.train.distributed import BLOCKS

# Towers, the masked branch, decoder and centers differ in shapes, each with and without gradients; 8 is torch's limit.
PROGRAMS = 64


def compile_blocks(module: nn.Module) -> None:
    """Compile each block by itself, in place, so that parameters keep their names.

    Blocks of the same shapes share a program, which compiles far sooner than a whole model would. Sizes are constants
    in it, which is fastest; batches of other sizes must run under `eager_if`.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, PROGRAMS)
    for block in module.modules():
        if isinstance(block, (*BLOCKS, CenterBlock)):
            block.compile(dynamic=False)


def eager_if(wanted: bool) -> AbstractContextManager[object]:
    """In which compiled blocks run as they are if `wanted`: a size that is met once is not worth a program."""
    return torch.compiler.set_stance("force_eager") if wanted else nullcontext()
