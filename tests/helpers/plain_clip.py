"""CLIP's image tower written down once more (arXiv 2103.00020), over the tensors that a file of weights gives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segclip.checkpoints.clip_config import ClipConfig

ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}


def image_tokens(state: dict[str, Tensor], told: ClipConfig, pixels: Tensor) -> Tensor:
    """All tokens after the last block, class token first: pixels (B,3,H,W) of the tower's own side -> (B,N,D).

    Args:
        state: tensors under our names, all blocks of the image tower as `image.layers.N`.
        told: what the tensors do not tell.
        pixels: normalised.
    """
    weight = state["image.tower.patch_embed.weight"]
    patches = F.conv2d(pixels, weight, stride=weight.shape[-1]).flatten(2).mT
    first = state["image.tower.class_token"].expand(len(pixels), 1, -1)
    x = norm(torch.cat([first, patches], dim=1) + state["image.tower.positions"], state, "image.tower.norm_pre")
    activation = ACTIVATIONS[told.image.activation or "quick_gelu"]
    heads = told.image.heads or x.shape[-1] // 64
    layers = {int(name.split(".")[2]) for name in state if name.startswith("image.layers.")}
    for layer in sorted(layers):
        prefix = f"image.layers.{layer}"
        joint = linear(norm(x, state, f"{prefix}.norm1"), state, f"{prefix}.attention.in_proj")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joint.chunk(3, dim=-1))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), state, f"{prefix}.attention.out_proj")
        hidden = activation(linear(norm(x, state, f"{prefix}.norm2"), state, f"{prefix}.mlp.fc1"))
        x = x + linear(hidden, state, f"{prefix}.mlp.fc2")
    return x


def image_embedding(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Tokens (B,N,D) after the last block -> each one's embedding (B,N,E), the image's first."""
    return norm(tokens, state, "image.norm_post") @ state["image.projection"]


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
