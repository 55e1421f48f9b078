"""The image tower as inference runs it: pixels of windows in, float32 out, in between whatever numbers suit.

Axes: B windows, H W pixels, D width.
"""

import copy
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segclip.data.normalise import normalise
from segclip.model.image import ImageTower
from segclip.model.segclip import ImageOutput, SegCLIP, gather_regions

DType = Literal["float32", "bfloat16", "int8"]
DTYPES: tuple[DType, ...] = get_args(DType)
INT8_MAX, TINY = 127, 1e-12


class Encoder:
    """Encodes windows.

    Args:
        model: whose image tower is used; it stays as it is.
        dtype: of the products in the blocks, which are nearly all of the work. "bfloat16": for processors and GPUs that
            multiply such numbers. "int8": the same with weights kept in 8 bits, but the centers', a quarter of the
            memory. Sums over the blocks, the assignment and the scores stay in float32.
        compile: have torch.compile make one program of the trunk; the first windows wait for it, and on a CPU it needs
            a C++ compiler.

    Raises:
        ValueError: an unknown dtype.
    """

    def __init__(self, model: SegCLIP, dtype: DType = "float32", *, compile: bool = False) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
        self.device = model.logit_scale.device
        self._tower = model.image if dtype == "float32" else _lighten(model.image, dtype)
        self._encode_patches = self._tower.encode_patches
        if compile:
            self._encode_patches = torch.compile(self._tower.encode_patches, dynamic=True)

    @torch.inference_mode()
    def __call__(self, windows: UInt8[Tensor, "B H W 3"]) -> ImageOutput:
        """Encode RGB windows, 0-255; H and W multiples of the patch. Raises ValueError for others."""
        pixels = normalise(windows.to(self.device, non_blocking=True))
        self._tower.check_size(*pixels.shape[-2:])
        return gather_regions(self._tower, self._encode_patches(pixels))


class LightLinear(nn.Module):
    """A linear layer that multiplies in bfloat16; weights in bfloat16, or in 8 bits with a scale per row."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: DType) -> None:
        super().__init__()
        weight = linear.weight.detach()
        if dtype == "int8":
            scale = (weight.abs().amax(dim=1, keepdim=True) / INT8_MAX).clamp(min=TINY)
            self.register_buffer("scale", scale.to(torch.bfloat16))
            weight = (weight / scale).round().to(torch.int8)
        else:
            self.register_buffer("scale", None)
            weight = weight.to(torch.bfloat16)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", linear.bias.detach().to(torch.bfloat16))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch _"]:
        weight = self.weight if self.scale is None else self.weight * self.scale  # int8 by bfloat16 is bfloat16
        return F.linear(x.to(torch.bfloat16), weight, self.bias)


def _lighten(tower: ImageTower, dtype: DType) -> ImageTower:
    """A copy whose blocks multiply in `dtype`; what is added up over them stays in float32."""
    tower = copy.deepcopy(tower).requires_grad_(False)
    for path, module in list(tower.named_modules()):
        # Small differences decide which center takes a patch: 8 bits are too few there. The centers' attention takes
        # its matrices out of one layer, after the grouping's last one nothing is added up: these stay as they are.
        grouping = path.startswith("grouping")
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and not (grouping and (name == "in_proj" or "mlp_out" in path)):
                setattr(module, name, LightLinear(child, "bfloat16" if grouping else dtype))
    return tower
