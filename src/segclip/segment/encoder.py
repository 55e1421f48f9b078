"""The image tower for inference: takes pixels of windows, returns float32, computes in the chosen precision.

Axes: B windows, H W pixels, D width.
"""

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segclip.model.image import ImageEncoder
from segclip.model.layers import DTYPES, DType, Projection, is_light, overwriting, torch_operator
from segclip.model.segclip import ImageOutput, SegCLIP

INT8_MAX, TINY = 127, 1e-12


class Encoder:
    """Encodes windows with a snapshot of a model, which later changes of the model do not affect.

    Args:
        model: whose image tower is used; it is not changed.
        dtype: of the matrix products in the blocks, which are nearly all of the work. "bfloat16": for processors and
            GPUs that support it. "int8": bfloat16 with the trunk's weights kept in 8 bits, a quarter of the memory. The
            residual stream, the assignment and the scores stay in float32.
        compile: compile the trunk with torch.compile; the first windows wait for it, and on a CPU it needs a C++
            compiler.
        share: use the model's weights without a copy where possible. Only for a model that will not change any more.

    Raises:
        ValueError: an unknown dtype.
    """

    def __init__(self, model: SegCLIP, dtype: DType = "float32", *, compile: bool = False, share: bool = False) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
        model = model if share else copy.deepcopy(model)
        self.device, self.dtype = model.logit_scale.device, dtype
        self._made_of = model, dtype, compile
        self._image: ImageEncoder = copy.deepcopy(model.image, {id(p): p for p in model.image.parameters()})
        _lighten(self._image, dtype)
        self._image.eval()  # with the layers that were replaced
        self._encode_patches = self._image.encode_patches
        if compile:
            self._encode_patches = torch.compile(self._image.encode_patches, dynamic=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuilt when loaded: compiled code cannot be pickled, and another processor may support other operators."""
        model, dtype, compile = self._made_of
        return partial(Encoder, compile=compile, share=True), (model, dtype)

    @torch.inference_mode()
    def __call__(self, windows: UInt8[Tensor, "B H W 3"], *, each: bool = False, offset: float = 0.0) -> ImageOutput:
        """Encode RGB windows, 0-255; with `each`, an embedding and features of each patch too; `offset` of positions.

        Raises ValueError unless H and W are multiples of the patch.
        """
        pixels = self._image.normalise(windows.to(self.device, non_blocking=True))
        self._image.check_size(*pixels.shape[-2:])
        return self._image.gather(self._encode_patches(pixels, offset=offset), pixels, each=each)


class InferenceLinear(nn.Module):
    """A linear layer without gradients: in float32, or in bfloat16 with weights in bfloat16 or 8 bits.

    Args:
        linear: the layer.
        dtype: of the product.
        light: whether the result may stay in bfloat16; otherwise it has the input's type.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None

    def __init__(self, linear: nn.Linear, dtype: DType, *, light: bool = True) -> None:
        super().__init__()
        weight, scale = linear.weight.detach(), None
        bias = None if linear.bias is None else linear.bias.detach()
        self.dtype, self.light = torch.float32 if dtype == "float32" else torch.bfloat16, light
        self.onednn = _onednn_takes(self.dtype, weight.device)
        if dtype == "int8":
            scale = (weight.abs().amax(dim=1) / INT8_MAX).clamp(min=TINY)
            weight, bias = (weight / scale[:, None]).round().to(torch.int8), None if bias is None else bias / scale
        else:
            weight = weight.to(self.dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.to(self.dtype))
        self.register_buffer("scale", scale)

    def forward(self, x: Float[Tensor, "*batch D"], outputs: slice = slice(None)) -> Float[Tensor, "*batch _"]:
        # Integers up to 127 are exact in bfloat16; the scale is one factor per output.
        given, x = x.dtype, x.to(self.dtype)
        weight, bias = self.weight[outputs].to(self.dtype), None if self.bias is None else self.bias[outputs]
        if not self.onednn:
            result = F.linear(x, weight, bias)
        else:
            result = _in_program(x, weight, bias) if torch.compiler.is_compiling() else _multiply(x, weight, bias)
        if self.scale is not None:
            result.mul_(self.scale[outputs])
        return result if self.light else result.to(given)


def _onednn_takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN can multiply here. For float32 torch itself uses MKL, which is slow on non-Intel processors."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch_operator("mkldnn._linear_pointwise") is None:
        return False
    takes_bfloat16 = torch_operator("mkldnn._is_mkldnn_bf16_supported")
    return dtype == torch.float32 or (takes_bfloat16 is not None and takes_bfloat16())


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# Opaque to torch.compile. The operator is looked up when it runs, so this can be defined where torch lacks it.
_in_program = torch.library.custom_op(
    "segclip::linear", _multiply, mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
)


@_in_program.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _lighten(module: nn.Module, dtype: DType, lightest: DType = "bfloat16", *, caller_is_light: bool = False) -> None:
    """Replace the layers of a module, recursively, that declare a lower precision; see `segclip.model.layers`.

    The residual stream stays in float32, and so do the inputs of a module that declares nothing.
    """
    lightest = getattr(module, "lightest", lightest)
    allowed = DTYPES[min(DTYPES.index(dtype), DTYPES.index(lightest))]
    light = is_light(module)
    for name, child in list(module.named_children()):
        # Exactly these two classes: a subclass may compute something else.
        if light and isinstance(child, nn.Linear) and type(child) in (nn.Linear, Projection):
            setattr(module, name, InferenceLinear(child, allowed, light=caller_is_light))
        else:
            _lighten(child, dtype, lightest, caller_is_light=light)
    if not light:
        if dtype != "float32" and [*module.parameters(), *module.buffers()]:
            module.register_forward_pre_hook(_give_float32, with_kwargs=True)
        return
    # Without gradients an activation's input is not needed again, and new memory costs more time than the arithmetic.
    attributes = vars(module)
    if "activation" in attributes and all(isinstance(child, InferenceLinear) for child in module.children()):
        attributes["activation"] = overwriting(attributes["activation"])


def _give_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    def give(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x

    return tuple(map(give, args)), {name: give(x) for name, x in kwargs.items()}
