"""The image tower as inference runs it: pixels of windows in, float32 out, in between whatever numbers suit.

Axes: B windows, H W pixels, D width.
"""

import copy
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segclip.data.normalise import normalise
from segclip.model.image import ImageTower
from segclip.model.layers import MLP, quick_gelu
from segclip.model.segclip import ImageOutput, SegCLIP, gather_regions

DType = Literal["float32", "bfloat16", "int8"]
DTYPES: tuple[DType, ...] = get_args(DType)
INT8_MAX, TINY = 127, 1e-12


class Encoder:
    """Encodes windows.

    Args:
        model: whose image tower is used; it stays as it is.
        dtype: of the products in the blocks, which are nearly all of the work. "bfloat16": for processors and GPUs that
            multiply such numbers. "int8": the same with the trunk's weights kept in 8 bits, a quarter of their memory.
            Sums over the blocks, the assignment and the scores stay in float32.
        compile: have torch.compile make one program of the trunk; the first windows wait for it, and on a CPU it needs
            a C++ compiler.

    Raises:
        ValueError: an unknown dtype.
    """

    def __init__(self, model: SegCLIP, dtype: DType = "float32", *, compile: bool = False) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
        self.device, self.dtype, self.compile = model.logit_scale.device, dtype, compile
        self._model = model
        self._tower = _prepare(model.image, dtype)
        self._encode_patches = self._tower.encode_patches
        if compile:
            self._encode_patches = torch.compile(self._tower.encode_patches, dynamic=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew where it is loaded: a program cannot be pickled, and another processor wants other products."""
        return partial(Encoder, compile=self.compile), (self._model, self.dtype)

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
        self.onednn = _onednn_takes(self.dtype, weight.device)
        if dtype == "int8":
            scale = (weight.abs().amax(dim=1) / INT8_MAX).clamp(min=TINY)
            weight, bias = (weight / scale[:, None]).round().to(torch.int8), bias / scale
        else:
            weight = weight.to(self.dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.to(self.dtype))
        self.register_buffer("scale", scale)

    def forward(self, x: Float[Tensor, "*batch D"], outputs: slice = slice(None)) -> Float[Tensor, "*batch _"]:
        # Whole numbers up to 127 are exact in bfloat16; their scale is one factor for each output.
        x, weight, bias = x.to(self.dtype), self.weight[outputs].to(self.dtype), self.bias[outputs]
        if not self.onednn:
            result = F.linear(x, weight, bias)
        else:
            result = _in_program(x, weight, bias) if torch.compiler.is_compiling() else _multiply(x, weight, bias)
        return result if self.scale is None else result.mul_(self.scale[outputs])


def _onednn_takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN can multiply here; torch's own asks MKL for float32, slow on processors that are not Intel's."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _multiply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


_in_program = torch.library.custom_op("segclip::linear", _multiply, mutates_args=())  # which torch.compile leaves alone


@_in_program.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(bias))


def _quick_gelu(x: Tensor) -> Tensor:
    return F.silu(x.mul_(1.702), inplace=True).mul_(1 / 1.702)


# Without gradients nobody needs what an activation was given; fresh memory costs more time than the arithmetic.
OVERWRITING = {quick_gelu: _quick_gelu, F.gelu: torch.ops.aten.gelu_.default}


def _prepare(tower: ImageTower, dtype: DType) -> ImageTower:
    """A copy in evaluation mode, sharing what stays as it is; what is added up over the blocks stays in float32."""
    tower = copy.deepcopy(tower, {id(p): p for p in tower.parameters()})
    for path, module in list(tower.named_modules()):
        # 8 bits are for the trunk: elsewhere small differences decide which center takes a patch, or tokens are so few
        # that unpacking weights would take longer than multiplying by them.
        own: DType = "bfloat16" if dtype == "int8" and not path.startswith("trunk") else dtype
        if isinstance(module, MLP):
            module.activation = OVERWRITING[module.activation]
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                # After the grouping's last layers nothing is added up: they stay as they are.
                setattr(module, name, InferenceLinear(child, "float32" if "mlp_out" in path else own))
    return tower.eval()
