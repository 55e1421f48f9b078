"""Learnable centers gather patches into regions: the heart of SegCLIP.

Axes: B batch, C centers, P patches, D width. A region is what one center gathered.
Source: arXiv 2211.14813, section 3.2.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.model.layers import MLP, Attention, light, limit_precision, quick_gelu
from segclip.utils.tables import choose

# Of a grouping that starts from k-means.
FOCUS = 0.55  # factor of the attention's queries and of its keys: larger, fewer patches move a center
MOVE = 2.0  # how far a block moves a center, in units of the patches' mean
SHARPNESS = 0.15  # scale of the centers against unit-variance patches: assignments are clear and can still change
LIFT = 4.0  # from here on the activation after a region's network is nearly the identity


@dataclass(frozen=True)
class Grouping:
    """What the centers did with the patches.

    Attributes:
        regions: (B,C,D).
        hard: (B,C,P), each patch given to one center; in training with a straight-through gradient.
        soft: (B,C,P), softmax over the centers, without noise.
        centers: (B,C,D), as they came to these patches; None where a grouping has none.
    """

    regions: Float[Tensor, "B C D"]
    hard: Float[Tensor, "B C P"]
    soft: Float[Tensor, "B C P"]
    centers: Float[Tensor, "B C D"] | None = None


class GroupedLinear(nn.Module):
    """A 1x1 convolution in `groups` groups, without bias, over tokens; one group per attention head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(width, width // groups))

    def initialize(self) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = x.unflatten(-1, (self.groups, -1))
        weight = self.weight.unflatten(0, (self.groups, -1))
        return torch.einsum("bngi,goi->bngo", x, weight).flatten(2)


class CenterBlock(nn.Module):
    """Centers attend to themselves and to the patches, then pass an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_centers = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, quick_gelu)

    @light
    def forward(self, centers: Float[Tensor, "B C D"], patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B C D"]:
        context = self.norm_context(torch.cat([centers, patches], dim=1))
        centers = centers + self.attention(self.norm_centers(centers), context)
        return centers + self.mlp(self.norm2(centers))


class CenterGrouping(nn.Module):
    """Learnable centers -> assignment of patches to centers -> regions."""

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        width, self.tau, self.center_in_region = config.image.width, config.tau, config.center_in_region
        self.centers = nn.Parameter(torch.empty(config.centers, width))
        self.blocks = nn.ModuleList(CenterBlock(width, heads) for _ in range(config.center_blocks))
        self.norm_centers = nn.LayerNorm(width)
        self.norm_patches = nn.LayerNorm(width)
        self.key = GroupedLinear(width, heads)
        self.norm_key = nn.LayerNorm(width)
        self.value = GroupedLinear(width, heads)
        self.norm_out = nn.LayerNorm(width)
        # Elsewhere, rounding errors meet a sum over the blocks that is kept in float32; after this nothing is added up.
        self.mlp_out = limit_precision(MLP(width, F.gelu), "float32")

    @staticmethod
    def count_regions(config: ModelConfig) -> int:
        """One a center."""
        return config.centers

    def initialize(self) -> None:
        nn.init.normal_(self.centers, std=0.02)

    def forward(self, patches: Float[Tensor, "B P D"], gumbel: Float[Tensor, "B C P"] | None = None) -> Grouping:
        """Gather patches.

        Args:
            patches: (B,P,D).
            gumbel: Gumbel noise (B,C,P) of a training step; None assigns each patch to its best center.
        """
        centers = self.centers.expand(patches.shape[0], -1, -1)
        for block in self.blocks:
            centers = block(centers, patches)
        centers = self.norm_centers(centers)

        normed = self.norm_patches(patches)
        logits = centers @ self.norm_key(self.key(normed)).mT
        soft = logits.softmax(dim=1)
        hard = _one_hot(soft) if gumbel is None else _straight_through((logits + gumbel) / self.tau)
        means = mean_by(hard, self.value(normed))
        return Grouping(self._finish(centers, means), hard, soft, centers)

    def gather_each(self, patches: Float[Tensor, "B P D"], grouping: Grouping) -> Float[Tensor, "B P D"]:
        """What each patch's center would have gathered, had it been given this patch alone."""
        assert grouping.centers is not None
        return self._finish(grouping.hard.mT @ grouping.centers, self.value(self.norm_patches(patches)))

    def _finish(self, centers: Float[Tensor, "B N D"], gathered: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gathered = centers + gathered if self.center_in_region else gathered
        return quick_gelu(self.mlp_out(self.norm_out(gathered)))

    @torch.no_grad()
    def initialize_from_clusters(self, patches: Float[Tensor, "N D"], cluster: Int[Tensor, "N"]) -> None:
        """Start as k-means: a center is the mean of a cluster, and each block takes a step toward what is like it."""
        width = patches.shape[1]
        normed = F.layer_norm(patches, (width,))
        mean, spread = normed.mean(dim=0), normed.std(dim=0).clamp(min=1e-6)
        for center in range(len(self.centers)):
            members = cluster == center
            self.centers[center] = patches[members if members.any() else slice(None)].mean(dim=0)

        def whiten(norm: nn.LayerNorm, scale: float = 1.0) -> None:
            norm.weight.copy_(scale / spread)
            norm.bias.copy_(-scale * mean / spread)

        identity = torch.eye(width)
        for block in self.blocks:
            assert isinstance(block, CenterBlock)
            whiten(block.norm_centers, FOCUS)
            whiten(block.norm_context, FOCUS)
            block.attention.in_proj.weight.copy_(identity.repeat(3, 1))
            # Back from whitened values to the patches' own units.
            block.attention.out_proj.weight.copy_(torch.diag(MOVE / FOCUS * spread * patches.std(dim=1).mean()))
        whiten(self.norm_centers, SHARPNESS)
        whiten(self.norm_patches)
        for layer in (self.key, self.value):
            layer.weight.copy_(torch.eye(layer.weight.shape[1]).repeat(layer.groups, 1))
        for layer in (self.mlp_out.fc1, self.mlp_out.fc2):
            nn.init.xavier_uniform_(layer.weight)  # no residual goes around this one: N(0, 0.02) would make it tiny

    @torch.no_grad()
    def pass_means_through(self) -> None:
        """Let a region be what its center gathered, lifted: GELU(x) - GELU(-x) = x."""
        wide, narrow = self.mlp_out.fc1, self.mlp_out.fc2
        width = wide.in_features
        both = torch.cat([torch.eye(width), -torch.eye(width)])
        wide.weight[: 2 * width], wide.bias[:] = both, 0
        narrow.weight[:], narrow.bias[:] = 0, LIFT
        narrow.weight[:, : 2 * width] = both.T


class PatchGrouping(nn.Module):
    """Every patch is a region: nothing is learned, and nothing is gathered.

    Raises:
        ValueError: no dense head, by which a patch says what is there.
    """

    learns, each_patch = False, True

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        if config.head is None:
            raise ValueError("grouping 'patches' without a dense head; give a `head`, or another grouping")

    @staticmethod
    def count_regions(config: ModelConfig) -> int:
        """One a patch of an image of the model's own side."""
        return (config.image.side // config.image.patch) ** 2

    def forward(self, patches: Float[Tensor, "B P D"], gumbel: Float[Tensor, "B C P"] | None = None) -> Grouping:
        """Each patch by itself."""
        patch = torch.arange(patches.shape[1], device=patches.device)
        each = (patch[:, None] == patch).to(patches.dtype).expand(patches.shape[0], -1, -1)  # one for all photos
        return Grouping(patches, each, each)


class KMeansGrouping(nn.Module):
    """The photo's own patches in clusters, by k-means of the directions of `center_features`.

    Which patch goes where, nobody has to learn. Over a dense head a region is the mean of its patches; over learned
    weights it is made of that mean as `CenterGrouping` makes it, in a model whose regions are without their center.

    Raises:
        ValueError: a model whose regions are their center plus the mean: here there is no center.
    """

    learns = False

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        self.count, self.learned = config.centers, config.head is None
        if self.learned and config.center_in_region:
            raise ValueError(
                "grouping 'k-means' over regions that are learned centers plus their patches (center_in_region): "
                "without a center they are not what the model has learned; take 'refined', which starts from them"
            )
        if self.learned:
            width = config.image.width
            self.norm_patches = nn.LayerNorm(width)
            self.value = GroupedLinear(width, heads)
            self.norm_out = nn.LayerNorm(width)
            self.mlp_out = limit_precision(MLP(width, F.gelu), "float32")  # for CenterGrouping's reason

    @staticmethod
    def count_regions(config: ModelConfig) -> int:
        """One a cluster."""
        return config.centers

    def forward(self, patches: Float[Tensor, "B P D"], gumbel: Float[Tensor, "B C P"] | None = None) -> Grouping:
        """Clusters of patches, and what each gathered; no noise moves a patch."""
        x = F.normalize(center_features(patches), dim=-1)
        hard, soft = k_means(x, start_clusters(x, self.count))
        return Grouping(self._finish(mean_by(hard, self._value(patches))), hard, soft)

    def gather_each(self, patches: Float[Tensor, "B P D"], grouping: Grouping) -> Float[Tensor, "B P D"]:
        """What each patch is as a region of its own."""
        return self._finish(self._value(patches))

    def _value(self, patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        return self.value(self.norm_patches(patches)) if self.learned else patches

    def _finish(self, gathered: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return quick_gelu(self.mlp_out(self.norm_out(gathered))) if self.learned else gathered


class RefinedCenterGrouping(CenterGrouping):
    """Learned centers, whose assignment k-means of the photo's own patches then refines."""

    def forward(self, patches: Float[Tensor, "B P D"], gumbel: Float[Tensor, "B C P"] | None = None) -> Grouping:
        """As CenterGrouping, but each patch goes where k-means that starts from the centers' assignment leaves it."""
        first = super().forward(patches, gumbel)
        assert first.centers is not None
        x = F.normalize(center_features(patches), dim=-1)
        hard, soft = k_means(x, F.normalize(mean_by(first.hard, x), dim=-1))
        centers = mean_by(hard, first.hard.mT @ first.centers)
        means = mean_by(hard, self.value(self.norm_patches(patches)))
        return Grouping(self._finish(centers, means), hard, soft, centers)


# Anyone can add a module: GROUPINGS["mine"] = MyGrouping. It is made of (configuration, attention heads of the tower);
# its forward is that of CenterGrouping, and `count_regions` says how many regions it gives. It may say how it starts
# (`initialize`, see `segclip.model.layers`), how from k-means (`initialize_from_clusters`, `pass_means_through`), and
# what a patch is as a region of its own (`gather_each`). One that cannot be trained says `learns = False`; one by which
# each patch is a region, `each_patch = True`.
GROUPINGS: dict[str, Callable[[ModelConfig, int], Any]] = {
    "centers": CenterGrouping,
    "refined": RefinedCenterGrouping,
    "k-means": KMeansGrouping,
    "patches": PatchGrouping,
}


def make_grouping(config: ModelConfig, heads: int) -> Any:
    """The grouping that a model is configured with. Raises ValueError for one that is not in the table."""
    return choose(GROUPINGS, config.grouping, "grouping")(config, heads)


def count_regions(config: ModelConfig) -> int:
    """How many regions a model gives. Raises ValueError for a grouping that is not in the table."""
    kind: Any = choose(GROUPINGS, config.grouping, "grouping")
    return kind.count_regions(config)


def sample_gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise: -log of an exponential variable."""
    return -torch.empty(shape, device=like.device, dtype=like.dtype).exponential_(generator=generator).log()


def center_features(patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
    """Normed features around the photo's mean, which says what is everywhere in it."""
    normed = F.layer_norm(patches, patches.shape[-1:])
    return normed - normed.mean(dim=1, keepdim=True)


def start_clusters(x: Float[Tensor, "B P D"], count: int) -> Float[Tensor, "B C D"]:
    """The patches that k-means starts from: far from each other by k-means++, with the same draws for every photo."""
    draws, far, chosen = random.Random(0), x.new_ones(x.shape[:2]), []
    for _ in range(count):
        reached = far.cumsum(dim=1)
        index = (reached <= draws.random() * reached[:, -1:]).sum(dim=1).clamp(max=x.shape[1] - 1)
        chosen.append(x.gather(1, index[:, None, None].expand(-1, 1, x.shape[2])))
        # 2 - 2 x cosine is the squared distance of unit vectors.
        far = torch.minimum(far, (1 - (chosen[-1] @ x.mT)[:, 0]).clamp(min=0))
    return torch.cat(chosen, dim=1)


def k_means(
    x: Float[Tensor, "B P D"], clusters: Float[Tensor, "B C D"], steps: int = 10, sharpness: float = 10.0
) -> tuple[Float[Tensor, "B C P"], Float[Tensor, "B C P"]]:
    """Hard and soft assignment of patches to clusters, both of unit length: the softmax of `sharpness` x cosine."""
    for _ in range(steps):
        hard = _one_hot(clusters @ x.mT)
        moved = F.normalize(hard @ x, dim=-1)
        clusters = torch.where(hard.sum(dim=-1, keepdim=True) > 0, moved, clusters)  # an empty one stays where it is
    cosines = clusters @ x.mT
    hard = _one_hot(cosines)
    empty = hard.sum(dim=-1, keepdim=True) == 0
    return hard, (sharpness * cosines).masked_fill(empty, -torch.inf).softmax(dim=1)


def mean_by(hard: Float[Tensor, "B C P"], x: Float[Tensor, "B P D"]) -> Float[Tensor, "B C D"]:
    """The mean over the patches of each center; 0 of one without any."""
    return hard @ x / hard.sum(dim=-1, keepdim=True).clamp(min=1)


def _one_hot(soft: Float[Tensor, "B C P"]) -> Float[Tensor, "B C P"]:
    return torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)


def _straight_through(logits: Float[Tensor, "B C P"]) -> Float[Tensor, "B C P"]:
    """One-hot forward, the gradient of the softmax backward (arXiv 1611.01144)."""
    soft = logits.softmax(dim=1)
    return _one_hot(soft.detach()) - soft.detach() + soft
