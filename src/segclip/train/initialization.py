"""Where a run starts: frozen towers, centers that already gather alike patches, regions that already point to captions.

From random numbers over frozen features the grouping learns for hours, and one center may end with every patch. So it
starts as two steps of k-means, which every parameter can leave: the centers are the clusters of the training photos'
patches; each attention block moves a center toward the patches of this photo that are like it; a patch goes to the
most alike center. What follows starts as a linear map from a region to the captions of its photo, by least squares.
"""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from torch import Tensor

from segclip.checkpoints.variants import load_to_train
from segclip.losses import weighted_losses
from segclip.model.grouping import count_regions
from segclip.model.reconstruction import visible_count
from segclip.model.segclip import SegCLIP
from segclip.train.config import TrainConfig
from segclip.train.optim import freeze

PHOTOS, PATCHES = 3000, 16  # how many photos are looked at, and how many patches of each by k-means
CHUNK = 64  # photos grouped at once
RIDGE = 0.03  # of the least squares, in units of the regions' mean variance


def check_recipe(config: TrainConfig) -> None:
    """Raise ValueError where a resolved recipe names what is in no table, or asks its model for what it cannot do."""
    assert config.model
    losses, image = weighted_losses(config.losses), config.model.image
    with torch.device("meta"):
        model = SegCLIP(config.model)
    freeze(model, config)
    if config.init_centers == "k-means" and not hasattr(model.image.grouping, "initialize_from_clusters"):
        raise ValueError(
            f"the grouping {config.model.grouping!r} cannot start from k-means; give init_centers random, or write its "
            "initialize_from_clusters"
        )
    if config.cache is None and (wordy := [name for name, loss in losses.items() if loss.words]):
        raise ValueError(
            f"the loss {wordy[0]} needs the words of captions, which come with cached features alone; learn from "
            f"those, or leave {', '.join(wordy)} out (weight 0)"
        )
    if model.reconstruction is None or not any(True for _ in model.image.grouping.parameters()):
        raise ValueError(
            f"grouping {config.model.grouping!r} has nothing to learn; give another, such as centers, and no head"
        )
    patches = (image.side // image.patch) ** 2
    if any(loss.masked for loss in losses.values()) and visible_count(patches, config.model.mask_ratio) < 1:
        raise ValueError(f"mask_ratio {config.model.mask_ratio} leaves none of {patches} patches visible; lower it")


def initialize_model(config: TrainConfig) -> SegCLIP:
    """The model of a resolved recipe, over the weights of `config.init_from`.

    With cached features it is new but for what is frozen. Else all is as in the weights, but for another grouping, and
    for what depends on a number that the recipe changes: the centers, and the layer that takes regions to patches.
    """
    assert config.model
    if config.init_from is None:
        return SegCLIP(config.model).eval()
    torch.manual_seed(config.seed)
    source = load_to_train(config.init_from)
    if not config.cache and source.config == config.model:
        return source
    model = SegCLIP(config.model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if source.config.grouping != config.model.grouping:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("image.grouping.")}
    kept = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if (name.startswith(config.frozen) if config.cache else tensor.shape == shapes.get(name))
    }
    model.load_state_dict(kept, strict=False)
    return model.eval()


@torch.no_grad()
def initialize_centers(model: SegCLIP, photos: Iterable[Float[np.ndarray, "P D"]], seed: int) -> None:
    """Start the grouping as k-means of what the trunk gives for photos: of the first 3,000, some patches each."""
    generator = np.random.default_rng(seed)
    patches = torch.cat([_some_patches(photo, generator) for photo in islice(photos, PHOTOS)])
    normed = F.layer_norm(patches, patches.shape[1:])
    mean, spread = normed.mean(dim=0), normed.std(dim=0).clamp(min=1e-6)
    directions = F.normalize((normed - mean) / spread, dim=-1)
    _, cluster = kmeans2(directions.numpy(), count_regions(model.config), minit="++", rng=generator)
    model.image.grouping.initialize_from_clusters(patches, torch.from_numpy(cluster))


@torch.no_grad()
def initialize_projection(
    model: SegCLIP,
    photos: Iterable[tuple[Float[np.ndarray, "P D"], Float[Tensor, "E"]]],
) -> None:
    """Start what names a region as ridge regression from the regions of photos to their captions: of the first 3,000.

    Args:
        model: its grouping has started already.
        photos: the patches of each, and the embedding of what its captions say.
    """
    image, width = model.image, model.config.image.width
    image.grouping.pass_means_through()
    found, wanted, weights = [], [], []
    some = list(islice(photos, PHOTOS))
    for i in range(0, len(some), CHUNK):
        patches, targets = zip(*some[i : i + CHUNK], strict=True)
        grouping = image.grouping(torch.from_numpy(np.stack(patches)).float())
        found.append(F.layer_norm(image.relate(grouping.regions), (width,)).flatten(0, 1))
        wanted.append(torch.stack(targets).repeat_interleave(grouping.regions.shape[1], dim=0))
        weights.append(grouping.hard.sum(dim=-1).flatten())
    x, y, weight = torch.cat(found), torch.cat(wanted), torch.cat(weights)
    weight = weight / weight.sum()
    mean = weight @ x
    x, y = x - mean, y - weight @ y
    spread, shared = (weight[:, None] * x).T @ x, (weight[:, None] * x).T @ y
    ridge = RIDGE * spread.diagonal().mean() * torch.eye(width)
    solved = torch.linalg.solve(spread + ridge, shared)
    image.norm_post.bias.copy_(-mean)
    image.projection.copy_(solved / (x @ solved).norm(dim=-1).mean())


def _some_patches(photo: Float[np.ndarray, "P D"], generator: np.random.Generator) -> Float[Tensor, "_ D"]:
    chosen = generator.choice(len(photo), min(PATCHES, len(photo)), replace=False)
    return torch.from_numpy(photo[chosen]).float()
