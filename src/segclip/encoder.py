"""The image tower as inference runs it: pixels of windows in, float32 out, in between whatever numbers suit.

Axes: B windows, H W pixels, D width.
"""

import copy
from functools import cache
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
        self._tower = _prepare(model.image, dtype)
        self._encode_patches = self._tower.encode_patches
        if compile:
            self._encode_patches = torch.compile(self._tower.encode_patches, dynamic=True)

    @torch.inference_mode()
    def __call__(self, windows: UInt8[Tensor, "B H W 3"]) -> ImageOutput:
        """Encode RGB windows, 0-255; H and W multiples of the patch. Raises ValueError for others."""
        pixels = normalise(windows.to(self.device, non_blocking=True))
        self._tower.check_size(*pixels.shape[-2:])
        return gather_regions(self._tower, self._encode_patches(pixels))


class InferenceLinear(nn.Module):
    """A linear layer without gradients: in float32, or in bfloat16 with weights in bfloat16 or in 8 bits."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: DType) -> None:
        super().__init__()
        weight, bias, scale = linear.weight.detach(), linear.bias.detach(), None
        self.dtype = torch.float32 if dtype == "float32" else torch.bfloat16
        if dtype == "int8":
            scale = (weight.abs().amax(dim=1) / INT8_MAX).clamp(min=TINY)
            weight = (weight / scale[:, None]).round().to(torch.int8)
        else:
            weight, bias = weight.to(self.dtype), bias.to(self.dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("scale", scale)

    def forward(self, x: Float[Tensor, "*batch D"], outputs: slice = slice(None)) -> Float[Tensor, "*batch _"]:
        x, weight, bias = x.to(self.dtype), self.weight[outputs], self.bias[outputs]
        if self.scale is None:
            return _multiply(x, weight, bias)
        # Whole numbers up to 127 are exact in bfloat16, and a row's scale is a factor of its output.
        return torch.addcmul(bias, _multiply(x, weight.to(self.dtype), None), self.scale[outputs]).to(self.dtype)


def _multiply(x: Float[Tensor, "*batch D"], weight: Float[Tensor, "W D"], bias: Float[Tensor, "W"] | None) -> Tensor:
    """x times the weights: on a CPU by oneDNN, where torch's own asks MKL, slow on processors that are not Intel's."""
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and _has_onednn(x.dtype):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    available = torch.backends.mkldnn.is_available()
    return available and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _prepare(tower: ImageTower, dtype: DType) -> ImageTower:
    """A copy for inference, which shares what stays as it is; what is added up over the blocks stays in float32."""
    tower = copy.deepcopy(tower, {id(p): p for p in tower.parameters()})
    for path, module in list(tower.named_modules()):
        # Small differences decide which center takes a patch: 8 bits are too few there.
        own: DType = "bfloat16" if dtype == "int8" and path.startswith("grouping") else dtype
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                # After the grouping's last layers nothing is added up: they stay as they are.
                setattr(module, name, InferenceLinear(child, "float32" if "mlp_out" in path else own))
    return tower
