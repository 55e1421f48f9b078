"""The image's way: pixels -> patches -> regions -> embeddings.

Axes: B batch, H W pixels, P patches, N P or 1+P tokens, V visible patches, C centers, D width, E embedding.
"""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.data.normalise import normalise
from segclip.model.dense import HEADS, Around, Head, run_blocks
from segclip.model.grouping import Grouping, center_features, make_grouping, mean_by
from segclip.model.layers import Block
from segclip.model.outputs import ImageOutput
from segclip.model.towers import IMAGE_TOWERS
from segclip.utils.tables import choose


class ImageEncoder(nn.Module):
    """A tower, the grouping of its patches, and blocks over the regions, or a dense head in place of these.

    Raises:
        ValueError: a tower, a grouping or a head that is in no table; a head without the tower whose features it asks
            for.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        image = self.config = config.image
        self.tower = choose(IMAGE_TOWERS, image.kind, "image tower")(image)
        self.grouping = make_grouping(config, self.tower.heads)
        self.region_blocks = nn.ModuleList(self.tower.region_block() for _ in range(image.region_layers))
        self.norm_post = nn.LayerNorm(image.width)
        self.projection = nn.Parameter(torch.empty(image.width, config.embed))
        self.head: Head | None = None if config.head is None else choose(HEADS, config.head, "head")
        self.head_sigma = config.head_sigma
        self.affinity = None
        if self.head and self.head.affinity:
            if config.affinity is None:
                raise ValueError(f"head {config.head!r} asks for another tower's features; give its `affinity`")
            self.affinity = choose(IMAGE_TOWERS, config.affinity.kind, "image tower")(config.affinity)
            self.affinity_patch = config.affinity.patch

    def initialize(self) -> None:
        self.tower.initialize_inputs()
        if self.affinity is not None:
            self.affinity.initialize_inputs()
        nn.init.normal_(self.projection, std=len(self.projection) ** -0.5)

    def normalise(self, photos: np.ndarray | Tensor) -> Float[Tensor, "... 3 H W"]:
        """Pixels as the tower takes them, of RGB uint8 (...,H,W,3), 0-255; on the same device."""
        return normalise(photos, self.tower.mean, self.tower.deviation)

    def encode_patches(
        self, pixels: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B V"] | None = None, *, offset: float = 0.0
    ) -> Float[Tensor, "B _ D"]:
        """Patch features (B,P,D), or (B,V,D) of the patches `keep` alone, in the order given there.

        For a dense head with the class token before them. `offset`: see `resize_positions`.
        """
        return self.tower(pixels, keep, offset=offset) if offset else self.tower(pixels, keep)

    def gather(
        self, patches: Float[Tensor, "B N D"], pixels: Float[Tensor, "B 3 H W"] | None = None, *, each: bool = False
    ) -> ImageOutput:
        """What the grouping, and the blocks after it, make of patches.

        Args:
            patches: from `encode_patches`.
            pixels: that they are of, which dense heads ask for.
            each: whether to give what each patch is by itself too.
        """
        if self.head is not None:
            assert pixels is not None
            return self._gather_dense(patches, pixels, each=each)
        grouping = self.grouping(patches)
        embedding, regions = self.embed_regions(grouping.regions)
        if not each:
            return ImageOutput(embedding, regions, grouping.hard, grouping.soft)
        own = self.embed_each(patches, grouping)
        centers = getattr(self.grouping, "centers", None)
        features = center_features(patches) if centers is None else patches - centers.mean(dim=0)
        return ImageOutput(embedding, regions, grouping.hard, grouping.soft, own, features)

    def _gather_dense(
        self, tokens: Float[Tensor, "B N D"], pixels: Float[Tensor, "B 3 H W"], *, each: bool
    ) -> ImageOutput:
        assert self.head is not None
        rows, columns = (side // self.config.patch for side in pixels.shape[-2:])
        around = Around((rows, columns), self.head_sigma, self._find_affinity(pixels, rows, columns))
        first, dense = run_blocks(self.head, cast(list[Block], list(self.region_blocks)), tokens, around)
        own, patches = self._project(dense), tokens[:, 1:]
        grouping = self.grouping(patches)
        each_patch = getattr(self.grouping, "each_patch", False)  # of which the product is too much work
        regions = own if each_patch else mean_by(grouping.hard, own)
        embedding = self._project(first)
        if not each:
            return ImageOutput(embedding, regions, grouping.hard, grouping.soft)
        return ImageOutput(embedding, regions, grouping.hard, grouping.soft, own, center_features(patches))

    def _find_affinity(
        self, pixels: Float[Tensor, "B 3 H W"], rows: int, columns: int
    ) -> Float[Tensor, "B P _"] | None:
        """Another tower's features of the same patches: it sees the photo at the size at which it has as many."""
        if self.affinity is None:
            return None
        size = rows * self.affinity_patch, columns * self.affinity_patch
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return F.normalize(self.affinity(pixels).float(), dim=-1)

    def embed_regions(self, regions: Float[Tensor, "B C D"]) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B C E"]]:
        """Regions -> the image's embedding (their element-wise maximum) and one embedding each."""
        regions = self.relate(regions)
        return self._project(regions.amax(dim=1)), self._project(regions)

    def embed_each(self, patches: Float[Tensor, "B P D"], grouping: Grouping) -> Float[Tensor, "B P E"] | None:
        """An embedding of each patch, as if it were a region; None where the grouping does not say how."""
        gather_each = getattr(self.grouping, "gather_each", None)
        return None if gather_each is None else self._project(self.relate(gather_each(patches, grouping)))

    def relate(self, regions: Float[Tensor, "B C D"]) -> Float[Tensor, "B C D"]:
        """The regions after the blocks in which they see each other."""
        for block in self.region_blocks:
            regions = block(regions)
        return regions

    def _project(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        return self.norm_post(x) @ self.projection

    def check_size(self, height: int, width: int) -> None:
        patch = self.config.patch
        for side in (height, width):
            if side % patch or side == 0:
                raise ValueError(f"image side {side} is not a multiple of the patch {patch}; resize or pad it")
