"""The image's way: pixels -> patches -> regions -> embeddings.

Axes: B batch, H W pixels, P patches, V visible patches, C centers, D width, E embedding.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.data.normalise import normalise
from segclip.model.grouping import Grouping, make_grouping
from segclip.model.towers import IMAGE_TOWERS
from segclip.utils.tables import choose


class ImageEncoder(nn.Module):
    """A tower, the grouping of its patches, and blocks over the regions.

    Raises:
        ValueError: a tower or a grouping that is in no table.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        image = self.config = config.image
        self.tower = choose(IMAGE_TOWERS, image.kind, "image tower")(image)
        self.grouping = make_grouping(config, self.tower.heads)
        self.region_blocks = nn.ModuleList(self.tower.region_block() for _ in range(image.region_layers))
        self.norm_post = nn.LayerNorm(image.width)
        self.projection = nn.Parameter(torch.empty(image.width, config.embed))

    def initialize(self) -> None:
        self.tower.initialize_inputs()
        nn.init.normal_(self.projection, std=len(self.projection) ** -0.5)

    def normalise(self, photos: np.ndarray | Tensor) -> Float[Tensor, "... 3 H W"]:
        """Pixels as the tower takes them, of RGB uint8 (...,H,W,3), 0-255; on the same device."""
        return normalise(photos, self.tower.mean, self.tower.deviation)

    def encode_patches(
        self, pixels: Float[Tensor, "B 3 H W"], keep: Int[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B _ D"]:
        """Patch features (B,P,D), or (B,V,D) of the patches `keep` alone, in the order given there."""
        return self.tower(pixels, keep)

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
