"""Where a run starts: frozen towers, and centers that already gather alike patches.

From random numbers over frozen features the grouping learns for hours, and one center may end with every patch. So it
starts as two steps of k-means, which every parameter can leave: the centers are the clusters of the training photos'
patches; each attention block moves a center toward the patches of this photo that are like it; a patch goes to the
most alike center.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from segclip.checkpoints import load
from segclip.model.grouping import CenterBlock, GroupedLinear
from segclip.model.segclip import SegCLIP
from segclip.train.features import Block

FROZEN = ("image.patch_embed", "image.class_token", "image.positions", "image.trunk", "image.norm_trunk", "text.")
PHOTOS, PATCHES = 3000, 16  # how many photos k-means sees, and how many patches of each
FOCUS = 0.55  # factor of the attention's queries and of its keys: larger, fewer patches move a center
MOVE = 2.0  # how far a block moves a center, in units of the patches' mean
SHARPNESS = 0.15  # scale of the centers against unit-variance patches: assignments are clear and can still change


def start_model(towers: str, seed: int, crops: Sequence[Sequence[Block]]) -> SegCLIP:
    """A new model over the frozen trunk and text tower of `towers`, its centers started from cached features.

    Args:
        towers: as `segclip.load` takes it.
        seed: of everything random.
        crops: as `cache_features` gives them.
    """
    source = load(towers)
    torch.manual_seed(seed)
    model = SegCLIP(source.config)
    kept = {name: tensor for name, tensor in source.state_dict().items() if name.startswith(FROZEN)}
    model.load_state_dict(kept, strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    generator = np.random.default_rng(seed)
    start_centers(model, torch.cat(list(islice(_some_patches(crops[0], generator), PHOTOS))), generator)
    return model


@torch.no_grad()
def start_centers(model: SegCLIP, patches: Float[Tensor, "N D"], generator: np.random.Generator) -> None:
    """Start the grouping as k-means of `patches`, trunk features of many photos."""
    grouping, width = model.image.grouping, model.config.image.width
    normed = F.layer_norm(patches, (width,))
    mean, spread = normed.mean(dim=0), normed.std(dim=0).clamp(min=1e-6)
    directions = F.normalize((normed - mean) / spread, dim=-1)
    _, cluster = kmeans2(directions.numpy(), model.config.centers, minit="++", rng=generator)
    for center in range(model.config.centers):
        members = torch.from_numpy(cluster == center)
        grouping.centers[center] = patches[members if members.any() else slice(None)].mean(dim=0)

    def whiten(norm: nn.LayerNorm, scale: float = 1.0) -> None:
        norm.weight.copy_(scale / spread)
        norm.bias.copy_(-scale * mean / spread)

    identity = torch.eye(width)
    for block in (module for module in grouping.modules() if isinstance(module, CenterBlock)):
        whiten(block.norm_centers, FOCUS)
        whiten(block.norm_context, FOCUS)
        block.attention.in_proj.weight.copy_(identity.repeat(3, 1))
        # Back from whitened values to the patches' own units.
        block.attention.out_proj.weight.copy_(torch.diag(MOVE / FOCUS * spread * patches.std(dim=1).mean()))
    whiten(grouping.norm_centers, SHARPNESS)
    whiten(grouping.norm_patches)
    for layer in (grouping.key, grouping.value):
        _set_identity(layer)
    for layer in grouping.mlp_out.modules():
        if isinstance(layer, nn.Linear):  # no residual goes around this one: N(0, 0.02) would make its output tiny
            nn.init.xavier_uniform_(layer.weight)


def _set_identity(layer: GroupedLinear) -> None:
    layer.weight.copy_(torch.eye(layer.weight.shape[1]).repeat(layer.groups, 1))


def _some_patches(blocks: Sequence[Block], generator: np.random.Generator) -> Iterator[Float[Tensor, "_ D"]]:
    for block in blocks:
        for photo in block.patches:
            chosen = generator.choice(len(photo), min(PATCHES, len(photo)), replace=False)
            yield torch.from_numpy(photo[chosen]).float()
