"""SegCLIP: towers, centers, losses, wired together.

Axes: B batch, H W pixels, P patches, V visible patches, C centers, D width, E embedding, L tokens.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from jaxtyping import Float, Int
from safetensors.torch import save_model
from torch import Tensor, nn

from segclip.config import ModelConfig
from segclip.losses import LABEL_SMOOTHING, SuperpixelLoss, contrastive_loss, reconstruction_loss, superpixel_loss
from segclip.model.grouping import CenterGrouping, GroupedLinear, sample_gumbel
from segclip.model.image import ImageTower
from segclip.model.layers import Attention
from segclip.model.outputs import ImageOutput, Losses, Noise
from segclip.model.reconstruction import Reconstruction, patchify, visible_count
from segclip.model.text import text_tower
from segclip.text.tokenizers import tokenizer_for
from segclip.utils.files import atomic

__all__ = ["ImageOutput", "Losses", "Noise", "Parts", "SegCLIP", "combine_parts", "gather_regions"]

MAX_SCALE = 100.0  # ceiling of the contrastive multiplier, as CLIP has it
INITIAL_SCALE = 1 / 0.07  # CLIP's start (arXiv 2103.00020, section 2.5)


class Parts(NamedTuple):
    """What pairs give of the losses before they meet the pairs of other micro-batches or processes.

    Attributes:
        image, text: (B,E) embeddings, not normalised.
        superpixel, reconstruction: losses, means over these pairs; 0 where they were left out.
        scale: multiplier of the contrastive loss.
    """

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    superpixel: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    scale: Float[Tensor, ""]


def gather_regions(tower: ImageTower, patches: Float[Tensor, "B P D"]) -> ImageOutput:
    """What the centers, and the blocks after them, make of patches."""
    grouping = tower.grouping(patches)
    embedding, regions = tower.embed_regions(grouping.regions)
    return ImageOutput(embedding, regions, grouping.hard, grouping.soft)


class SegCLIP(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="segclip",
    pipeline_tag="image-segmentation",
    paper_url="https://arxiv.org/abs/2211.14813",
):
    """The model. `SegCLIP(ModelConfig())` is the paper's ViT-B/16, untrained.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of `huggingface_hub.PyTorchModelHubMixin`: a folder
    or a hub repository with model.safetensors, config.json and a model card. `segclip.load` reads these and more.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config)
        self.text = text_tower(config)
        self.reconstruction = Reconstruction(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        if not self.logit_scale.is_meta:  # else a file's weights are to come
            self.apply(_initialise)

    @property
    def scale(self) -> float:
        """The multiplier of cosines, as inference has it: `logit_scale` without its logarithm, MAX_SCALE at most."""
        return float(self.logit_scale.detach().exp().clamp(max=MAX_SCALE))

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"]) -> ImageOutput:
        """Encode normalised photos, without noise.

        Args:
            pixels: (B,3,H,W), normalised with CLIP's mean and standard deviation; H and W multiples of the patch.

        Raises:
            ValueError: a side is not a multiple of the patch.
        """
        self.image.check_size(*pixels.shape[-2:])
        return gather_regions(self.image, self.image.encode_patches(pixels))

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "B L"]:
        """Token ids of texts for `encode_text`, padded with 0; texts longer than the context are cut.

        Raises:
            ValueError: a lone str or an empty list; the model's vocabulary is not a known tokenizer's.
        """
        return tokenizer_for(self.config.text)(texts)

    def encode_text(self, token_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """Encode token ids as `tokenize` gives them; the embeddings are not normalised.

        Raises:
            ValueError: more tokens than the model's context.
        """
        limit = self.config.text.context
        if token_ids.shape[1] > limit:
            raise ValueError(f"text of {token_ids.shape[1]} tokens; the model takes at most {limit}: cut it")
        return self.text(token_ids)

    def losses(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        token_ids: Int[Tensor, "B L"],
        superpixels: Int[Tensor, "B rows columns"] | None = None,
        *,
        noise: Noise | None = None,
    ) -> Losses:
        """The three losses of a batch of pairs.

        Args:
            pixels: (B,3,H,W) as for `encode_image`.
            token_ids: (B,L), the caption of each.
            superpixels: an id per patch; None leaves the superpixel loss out.
            noise: every random draw; None draws it.
        """
        noise = noise or self.draw_noise(pixels)
        return combine_parts(self.parts(pixels, token_ids, superpixels, noise))

    def parts(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        token_ids: Int[Tensor, "B L"],
        superpixels: Int[Tensor, "B rows columns"] | None,
        noise: Noise,
        *,
        reconstruct: bool = True,
        kind: SuperpixelLoss = "reference",
        smoothing: float = LABEL_SMOOTHING,
    ) -> Parts:
        """`losses`, before the contrastive loss; `reconstruct` says whether there is a masked branch.

        The masked branch encodes the visible patches only.
        """
        self.image.check_size(*pixels.shape[-2:])
        patch = self.config.image.patch
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        if superpixels is not None and tuple(superpixels.shape[1:]) != grid:
            raise ValueError(
                f"superpixels of {tuple(superpixels.shape[1:])} rows and columns; these photos have {grid} patches: "
                "give one id per patch"
            )
        visible = None
        if reconstruct:
            order = noise.mask.argsort(dim=1)
            visible = self.image.encode_patches(pixels, keep=order[:, : noise.gumbel_visible.shape[-1]])
        return self.parts_from_patches(
            self.image.encode_patches(pixels),
            visible,
            pixels,
            self.encode_text(token_ids),
            None if superpixels is None else superpixels.flatten(1),
            noise,
            kind=kind,
            smoothing=smoothing,
        )

    def parts_from_patches(
        self,
        patches: Float[Tensor, "R N D"],
        visible: Float[Tensor, "M V D"] | None,
        pixels: Float[Tensor, "_ 3 H W"],
        text: Float[Tensor, "B E"],
        superpixels: Int[Tensor, "R N"] | None,
        noise: Noise,
        *,
        kind: SuperpixelLoss = "reference",
        smoothing: float = LABEL_SMOOTHING,
        photos: int = 1,
    ) -> Parts:
        """`parts` from what the trunk and the text tower gave, which frozen towers need to compute only once.

        Under autocast the losses themselves stay in full precision: small differences decide them.

        Args:
            patches: trunk features of all patches; or of mosaics (R = B / photos, N patches each).
            visible: trunk features of the visible patches, in ascending order of `noise.mask`, of the first M
                photos: the masked branch costs the most, and a part of the batch estimates its loss too. None leaves
                the reconstruction loss out.
            pixels: as for `losses`, of the first M photos at least.
            text: embedding of each caption.
            superpixels: an id per patch; None leaves the superpixel loss out.
            noise: as for `losses`.
            kind, smoothing: see `superpixel_loss`.
            photos: in a mosaic (see `ImageTower.embed_mosaic`); 1: every photo is encoded by itself.
        """
        grouping = self.image.grouping(patches, noise.gumbel)
        if photos > 1:
            embedding = self.image.embed_mosaic(grouping, photos)
        else:
            embedding, _ = self.image.embed_regions(grouping.regions)
        zero = pixels.new_zeros(())
        with torch.autocast(pixels.device.type, enabled=False):
            scale = self.logit_scale.exp().clamp(max=MAX_SCALE)
            superpixel = zero if superpixels is None else superpixel_loss(grouping.hard, superpixels, kind, smoothing)
        reconstruction = zero if visible is None else self._reconstruct(visible, pixels, noise)
        return Parts(embedding.to(text.dtype), text, superpixel, reconstruction, scale)

    def _reconstruct(
        self, visible: Float[Tensor, "M V D"], pixels: Float[Tensor, "_ 3 H W"], noise: Noise
    ) -> Float[Tensor, ""]:
        patch, count = self.config.image.patch, len(visible)
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        order = noise.mask[:count].argsort(dim=1)
        predicted = self.reconstruction(self.image.grouping(visible, noise.gumbel_visible[:count]), order, grid)
        masked = torch.ones_like(noise.mask[:count]).scatter(1, order[:, : visible.shape[1]], 0.0)
        with torch.autocast(pixels.device.type, enabled=False):
            target = patchify(pixels[:count], patch)
            return reconstruction_loss(predicted.to(target.dtype), target, masked)

    def draw_noise(self, pixels: Float[Tensor, "B 3 H W"]) -> Noise:
        """Random draws for one training step on these photos."""
        batch, centers = len(pixels), self.config.centers
        patches = pixels.shape[-2] * pixels.shape[-1] // self.config.image.patch**2
        return Noise(
            gumbel=sample_gumbel((batch, centers, patches), like=pixels),
            mask=torch.rand(batch, patches, device=pixels.device, dtype=pixels.dtype),
            gumbel_visible=sample_gumbel((batch, centers, visible_count(patches)), like=pixels),
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        with atomic(save_directory / SAFETENSORS_SINGLE_FILE) as file:
            save_model(self, str(file))

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> "SegCLIP":
        """The mixin's own way would leave weights that the file lacks as they were drawn, and say nothing."""
        return super()._from_pretrained(strict=strict, **options)

    @classmethod
    def _decode_arg(cls, expected_type: Any, value: Any) -> ModelConfig:
        """The content of config.json; the mixin's own way decodes no dataclass inside another, coders or not."""
        return ModelConfig.from_dict(value)


def combine_parts(parts: Parts, soft_target_scale: float | None = None) -> Losses:
    """The losses of pairs that are the whole batch; for `soft_target_scale` see `contrastive_loss`."""
    with torch.autocast(parts.image.device.type, enabled=False):
        image, text = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in (parts.image, parts.text))
        contrastive = contrastive_loss(image, text, parts.scale, soft_target_scale)
    total = contrastive + parts.superpixel + parts.reconstruction
    return Losses(contrastive, parts.superpixel, parts.reconstruction, total)


def _initialise(module: nn.Module) -> None:
    """The paper's start: linear layers N(0, 0.02), attention's input Xavier-uniform, LayerNorm 1/0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, GroupedLinear):
        nn.init.uniform_(module.weight, -(module.weight.shape[1] ** -0.5), module.weight.shape[1] ** -0.5)
    elif isinstance(module, CenterGrouping):
        nn.init.normal_(module.centers, std=0.02)
    elif isinstance(module, Reconstruction):
        nn.init.normal_(module.mask_token, std=0.02)
    elif isinstance(module, Attention):  # after its own linear layers: `apply` visits children first
        nn.init.xavier_uniform_(module.in_proj.weight)
    else:
        for name in ("class_token", "positions", "projection"):
            if isinstance(parameter := getattr(module, name, None), nn.Parameter):
                nn.init.normal_(parameter, std=parameter.shape[-1 if name == "class_token" else 0] ** -0.5)
