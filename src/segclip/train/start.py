"""Where a run starts: frozen towers, and centers that already gather alike patches.

From random numbers over frozen features the grouping learns for hours, and one center may end with every patch. So it
starts as two steps of k-means, which every parameter can leave: the centers are the clusters of the training photos'
patches; each attention block moves a center toward the patches of this photo that are like it; a patch goes to the
most alike center.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from segclip.checkpoints import load
from segclip.config import TrainConfig
from segclip.model.grouping import CenterBlock, GroupedLinear
from segclip.model.segclip import SegCLIP
from segclip.train.cache import Block

PHOTOS, PATCHES = 3000, 16  # how many photos k-means sees, and how many patches of each
FOCUS = 0.55  # factor of the attention's queries and of its keys: larger, fewer patches move a center
MOVE = 2.0  # how far a block moves a center, in units of the patches' mean
SHARPNESS = 0.15  # scale of the centers against unit-variance patches: assignments are clear and can still change


def start_model(config: TrainConfig, crops: Sequence[Sequence[Block]]) -> SegCLIP:
    """A new model over the frozen trunk and text tower of `config.start`, its centers started from cached features.

    Args:
        config: the recipe.
        crops: as `cache_features` gives them.
    """
    assert config.start
    source = load(config.start)
    torch.manual_seed(config.seed)
    model = SegCLIP(source.config)
    kept = {name: tensor for name, tensor in source.state_dict().items() if name.startswith(config.frozen)}
    model.load_state_dict(kept, strict=False)
    if config.centers == "k-means":
        start_centers(model, (photo for block in crops[0] for photo in block.patches), config.seed)
    return model


@torch.no_grad()
def start_centers(model: SegCLIP, photos: Iterable[Float[np.ndarray, "P D"]], seed: int) -> None:
    """Start the grouping as k-means of what the trunk gives for photos: of the first 3,000, some patches each."""
    generator = np.random.default_rng(seed)
    patches = torch.cat([_some_patches(photo, generator) for photo in islice(photos, PHOTOS)])
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


def _some_patches(photo: Float[np.ndarray, "P D"], generator: np.random.Generator) -> Float[Tensor, "_ D"]:
    chosen = generator.choice(len(photo), min(PATCHES, len(photo)), replace=False)
    return torch.from_numpy(photo[chosen]).float()
