"""Blocks that the towers share, how parts are initialised, and what they say of themselves to inference.

A forward that inference (`segclip.segment.encoder`) may make lighter says so with `light`. A module with limits of its
own to how light its numbers may be says so with `limit_precision`. What says nothing stays as it is and is given
float32.

Axes: B batch, N tokens, M context tokens, D width.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
SHORT = 256  # tokens up to which attention's two matrices take no more memory than the MLP's activations

DType = Literal["float32", "bfloat16", "int8"]
DTYPES: tuple[DType, ...] = get_args(DType)  # each lighter than the one before
M = TypeVar("M", bound=nn.Module)
Forward = TypeVar("Forward", bound=Callable[..., Any])


def light(forward: Forward) -> Forward:
    """Say that inference may make a forward lighter; a subclass that writes its own must say it again.

    What is promised: the module's layers are only called, never read, and by this forward alone. Their results, and
    what it is given by forwards that say so too, may come in bfloat16. `activation`, if there is one, may overwrite the
    result of a linear layer that it is given: nothing else reads it.
    """
    vars(forward)["light"] = True
    return forward


def is_light(module: nn.Module) -> bool:
    """Whether `light` was said of the module's forward."""
    return getattr(module.forward, "light", False)


def limit_precision(module: M, lightest: DType) -> M:
    """Say what the products in a module, and in all that is in it and does not say otherwise, may be made of at most.

    Where nobody says it, that is bfloat16.
    """
    vars(module)["lightest"] = lightest
    return module


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), CLIP's approximation of GELU (github.com/openai/CLIP, model.py).

    Through silu(z) = z * sigmoid(z), which keeps one tensor for the backward pass instead of two and reads it once.
    """
    return F.silu(1.702 * x) * (1 / 1.702)


# What a tower's configuration can name.
ACTIVATIONS: dict[str, Activation] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def _overwriting_quick_gelu(x: Tensor) -> Tensor:
    return F.silu(x.mul_(1.702), inplace=True).mul_(1 / 1.702)


def overwriting(activation: Activation) -> Activation:
    """The same function, but one that overwrites what it is given, where there is such; else the one given."""
    gelu = torch_operator("aten.gelu_")
    known = [(quick_gelu, _overwriting_quick_gelu), (F.gelu, gelu or F.gelu)]
    return next((own for plain, own in known if plain is activation), activation)


def torch_operator(name: str) -> Callable[..., Any] | None:
    """An operator that torch does not document, such as "aten.gelu_"; None where this torch has none of that name."""
    found: Any = torch.ops
    for part in (*name.split("."), "default"):
        found = getattr(found, part, None)
    return found


class Projection(nn.Linear):
    """A linear layer of which some outputs can be had alone."""

    def forward(self, x: Float[Tensor, "... D"], outputs: slice = slice(None)) -> Float[Tensor, "... W"]:
        return F.linear(x, self.weight[outputs], None if self.bias is None else self.bias[outputs])


class Attention(nn.Module):
    """Multi-head attention; keys and values come from `context`, or from the tokens themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = Projection(width, 3 * width)  # queries, keys, values
        self.out_proj = nn.Linear(width, width)

    def initialize(self) -> None:
        nn.init.xavier_uniform_(self.in_proj.weight)

    @light
    def forward(
        self,
        x: Float[Tensor, "B N D"],
        context: Float[Tensor, "B M D"] | None = None,
        *,
        causal: bool = False,
        mask: Bool[Tensor, "B M"] | None = None,
        mix: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "B _ D"]:
        """Attend.

        Args:
            x: the tokens that ask.
            context: those that are asked.
            causal: whether a token may ask those before it alone.
            mask: True where a context token may be asked.
            mix: (queries, keys, values), each (B,heads,N,d) -> (B,heads,_,d), in place of attention.
        """
        if context is None:
            q, k, v = self.in_proj(x).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            q = self.in_proj(x, slice(width))
            k, v = self.in_proj(context, slice(width, None)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if mix is not None:
            out = mix(q, k, v)
        elif mask is None and not causal and _quicker_spelled_out(q, k):
            out = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
        else:
            allowed = None if mask is None else mask[:, None, None, :]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def _quicker_spelled_out(q: Tensor, k: Tensor) -> bool:
    """In bfloat16 on a CPU, torch's fused attention takes longer than the products, its backward pass above all."""
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and k.shape[-2] <= SHORT


class MLP(nn.Module):
    """Two linear layers, the hidden one `ratio` times as wide."""

    def __init__(self, width: int, activation: Activation, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(ratio * width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation

    @light
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    @light
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Block(nn.Module):
    """Pre-norm residual transformer block: CLIP's by default, DINOv2's with GELU and `layer_scale`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: Activation = quick_gelu,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.attention = Attention(width, heads)
        self.scale1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = norm(width)
        self.mlp = MLP(width, activation, mlp_ratio)
        self.scale2 = LayerScale(width) if layer_scale else nn.Identity()

    @light
    def forward(self, x: Float[Tensor, "B N D"], *, causal: bool = False) -> Float[Tensor, "B N D"]:
        x = x + self.scale1(self.attention(self.norm1(x), causal=causal))
        return x + self.scale2(self.mlp(self.norm2(x)))


class Adapter(nn.Module):
    """x of unit length + a two-layer network of it, which starts at 0."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def initialize(self) -> None:
        nn.init.zeros_(self.fc2.weight)

    def forward(self, x: Float[Tensor, "... E"]) -> Float[Tensor, "... E"]:
        x = F.normalize(x, dim=-1)
        return x + self.fc2(F.gelu(self.fc1(x)))


class PostNormBlock(nn.Module):
    """BERT's post-norm block (arXiv 1810.04805)."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float = 4.0, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, 1e-12)
        self.mlp = MLP(width, activation, mlp_ratio)
        self.norm2 = nn.LayerNorm(width, 1e-12)

    def forward(self, x: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        x = self.norm1(x + self.attention(x, mask=mask))
        return self.norm2(x + self.mlp(x))


def initialize(module: nn.Module) -> None:
    """Draw the weights that a module, and all that is in it, starts from; what is inside first.

    Linear layers and embeddings are N(0, 0.02), biases 0; other layers stay as torch made them. A module that starts
    otherwise says so in a method `initialize` without arguments, which is called last and so has its way.
    """
    for child in module.children():
        initialize(child)
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            nn.init.zeros_(bias)
    elif (own := getattr(module, "initialize", None)) is not None:
        own()
