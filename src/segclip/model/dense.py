"""Dense heads: what a CLIP's last block becomes, so that each patch says what is there. No training.

A CLIP is trained to say what the whole photo shows. In its last block, patches ask others that are unlike them; let
them ask those that are alike, or themselves alone, and each has an embedding of its own.

Axes: B photos, H heads, N tokens (the class token first), P patches, d channels of a head, D width, F affinity's width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segclip.model.layers import Block

BETA, GAMMA = 1.2, 3.0  # of ProxyCLIP (arXiv 2408.04883): how far above the mean likeness counts, and how much


@dataclass(frozen=True)
class Around:
    """What a head may know beside queries, keys and values.

    Attributes:
        grid: rows and columns of patches.
        sigma: width of a Gaussian, in patches.
        affinity: (B,P,F), another tower's features of the same patches, of unit length; None where there is none.
    """

    grid: tuple[int, int]
    sigma: float
    affinity: Float[Tensor, "B P F"] | None = None


Mix = Callable[[Tensor, Tensor, Tensor, Around], Tensor]


@dataclass(frozen=True)
class Head:
    """A dense head.

    Attributes:
        mix: (queries, keys, values, Around) -> what each token gathers; all (B,H,N,d).
        reduced: whether the tokens become that alone; else it is added to them, and the block's MLP follows.
        affinity: whether it asks for another tower's features.
    """

    mix: Mix
    reduced: bool
    affinity: bool = False


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def plain(q: Tensor, k: Tensor, v: Tensor, around: Around) -> Tensor:
    """CLIP's own attention."""
    return _attend(q, k, v)


def values(q: Tensor, k: Tensor, v: Tensor, around: Around) -> Tensor:
    """Each token its own value (MaskCLIP, arXiv 2112.01071)."""
    return v


def sclip(q: Tensor, k: Tensor, v: Tensor, around: Around) -> Tensor:
    """Those with alike queries, and those with alike keys, added up (SCLIP, arXiv 2312.01597)."""
    return _attend(q, q, v) + _attend(k, k, v)


def clearclip(q: Tensor, k: Tensor, v: Tensor, around: Around) -> Tensor:
    """Those with alike queries (ClearCLIP, arXiv 2407.12442)."""
    return _attend(q, q, v)


def naclip(q: Tensor, k: Tensor, v: Tensor, around: Around) -> Tensor:
    """Those with alike keys, the near ones above all (NACLIP, arXiv 2404.08181)."""
    return _attend(k, k, v, neighbourhood(around.grid, around.sigma).to(k))


def proxy(q: Tensor, k: Tensor, v: Tensor, around: Around) -> Tensor:
    """Those that another model finds alike (ProxyCLIP, arXiv 2408.04883); the class token its own value.

    A patch always counts as like itself: on a blank photo it would else be like none.
    """
    z = around.affinity
    assert z is not None
    likeness = z @ z.mT
    likeness = GAMMA * (likeness - BETA * likeness.mean(dim=(1, 2), keepdim=True))
    patch = torch.arange(likeness.shape[-1], device=z.device)
    unlike = (likeness < 0) & (patch[:, None] != patch)
    weights = likeness.masked_fill(unlike, -torch.inf).softmax(dim=-1).to(v)
    return torch.cat([v[:, :, :1], weights[:, None] @ v[:, :, 1:]], dim=2)


def neighbourhood(grid: tuple[int, int], sigma: float) -> Float[Tensor, "N N"]:
    """exp(-distance^2 / (2 sigma^2)) between patches, in patches; 0 of the class token."""
    down, across = (torch.exp(-((torch.arange(n)[:, None] - torch.arange(n)) ** 2) / (2 * sigma**2)) for n in grid)
    near = down[:, None, :, None] * across[None, :, None, :]
    return F.pad(near.flatten(2).flatten(0, 1), (1, 0, 1, 0))


# Anyone can add one: HEADS["mine"] = Head(my_mix, reduced=True).
HEADS: dict[str, Head] = {
    "naclip": Head(naclip, reduced=True),
    "sclip": Head(sclip, reduced=False),
    "clearclip": Head(clearclip, reduced=True),
    "maskclip": Head(values, reduced=True),
    "maskclip_kept": Head(values, reduced=False),
    "qk": Head(plain, reduced=False),
    "proxy": Head(proxy, reduced=True, affinity=True),
}


def run_head(head: Head, block: Block, tokens: Float[Tensor, "B N D"], around: Around) -> Float[Tensor, "B N D"]:
    """A block with a head in place of its attention."""
    gathered = block.attention(block.norm1(tokens), mix=lambda q, k, v: head.mix(q, k, v, around))
    if head.reduced:
        return gathered
    tokens = tokens + gathered
    return tokens + block.mlp(block.norm2(tokens))


def run_blocks(
    head: Head, blocks: Sequence[Block], tokens: Float[Tensor, "B N D"], around: Around
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P D"]]:
    """The class token after CLIP's last blocks as they are, and the patches after the head's."""
    dense = tokens
    *before, last = blocks
    for block in before:
        dense, tokens = run_head(head, block, dense, around), block(tokens)
    first = tokens[:, :1]
    first = first + last.attention(last.norm1(first), last.norm1(tokens))
    first = first + last.mlp(last.norm2(first))
    return first[:, 0], run_head(head, last, dense, around)[:, 1:]
