"""The image tower as inference runs it: pixels of windows in, float32 out, in between whatever numbers suit.

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
from segclip.model.segclip import ImageOutput, SegCLIP, gather_regions

INT8_MAX, TINY = 127, 1e-12


class Encoder:
    """Encodes windows with a model as it is now: a snapshot, which later changes of the model do not reach.

    Args:
        model: whose image tower is used; it stays as it is.
        dtype: of the products in the blocks, which are nearly all of the work. "bfloat16": for processors and GPUs that
            multiply such numbers. "int8": the same with the trunk's weights kept in 8 bits, a quarter of their memory.
            Sums over the blocks, the assignment and the scores stay in float32.
        compile: have torch.compile make one program of the trunk; the first windows wait for it, and on a CPU it needs
            a C++ compiler.
        share: use the model's own weights where they are needed as they are, which saves a copy of them. For the owner
            of a model, who promises that it does not change any more.

    Raises:
        ValueError: an unknown dtype.
    """

    def __init__(self, model: SegCLIP, dtype: DType = "float32", *, compile: bool = False, share: bool = False) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
        model = model if share else copy.deepcopy(model)
        self.device = model.logit_scale.device
        self._made_of = model, dtype, compile
        self._image: ImageEncoder = copy.deepcopy(model.image, {id(p): p for p in model.image.parameters()})
        _lighten(self._image, dtype)
        self._image.eval()  # with what took the place of its layers
        self._encode_patches = self._image.encode_patches
        if compile:
            self._encode_patches = torch.compile(self._image.encode_patches, dynamic=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew where it is loaded: a program cannot be pickled, and another processor wants other products."""
        model, dtype, compile = self._made_of
        return partial(Encoder, compile=compile, share=True), (model, dtype)

    @torch.inference_mode()
    def __call__(self, windows: UInt8[Tensor, "B H W 3"]) -> ImageOutput:
        """Encode RGB windows, 0-255; H and W multiples of the patch. Raises ValueError for others."""
        pixels = self._image.normalise(windows.to(self.device, non_blocking=True))
        self._image.check_size(*pixels.shape[-2:])
        return gather_regions(self._image, self._encode_patches(pixels))


class InferenceLinear(nn.Module):
    """A linear layer without gradients: in float32, or in bfloat16 with weights in bfloat16 or in 8 bits.

    Args:
        linear: the layer.
        dtype: of the product.
        light: whether the result may stay in bfloat16; else it is of the type of what is given.
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
        # Whole numbers up to 127 are exact in bfloat16; their scale is one factor for each output.
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
    """Whether oneDNN can multiply here; torch's own asks MKL for float32, slow on processors that are not Intel's."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch_operator("mkldnn._linear_pointwise") is None:
        return False
    takes_bfloat16 = torch_operator("mkldnn._is_mkldnn_bf16_supported")
    return dtype == torch.float32 or (takes_bfloat16 is not None and takes_bfloat16())


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# torch.compile leaves it alone. What it calls is looked up when it runs, so it may stand where torch has no such thing.
_in_program = torch.library.custom_op(
    "segclip::linear", _multiply, mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
)


@_in_program.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _lighten(module: nn.Module, dtype: DType, lightest: DType = "bfloat16", *, caller_is_light: bool = False) -> None:
    """Replace, in a module and all that is in it, what says that it may be lighter; see `segclip.model.layers`.

    What is added up over the blocks stays in float32, and so does all that a module sees which says nothing of itself.
    """
    lightest = getattr(module, "lightest", lightest)
    own = DTYPES[min(DTYPES.index(dtype), DTYPES.index(lightest))]
    light = is_light(module)
    for name, child in list(module.named_children()):
        # Of these two classes and no other: a subclass may compute something else.
        if light and isinstance(child, nn.Linear) and type(child) in (nn.Linear, Projection):
            setattr(module, name, InferenceLinear(child, own, light=caller_is_light))
        else:
            _lighten(child, dtype, lightest, caller_is_light=light)
    if not light:
        if dtype != "float32" and [*module.parameters(), *module.buffers()]:
            module.register_forward_pre_hook(_give_float32, with_kwargs=True)
        return
    # Without gradients nobody needs what an activation was given; fresh memory costs more time than the arithmetic.
    own_names = vars(module)
    if "activation" in own_names and all(isinstance(child, InferenceLinear) for child in module.children()):
        own_names["activation"] = overwriting(own_names["activation"])


def _give_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    def give(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x

    return tuple(map(give, args)), {name: give(x) for name, x in kwargs.items()}
