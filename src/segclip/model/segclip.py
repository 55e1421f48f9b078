"""SegCLIP: towers, centers, losses, wired together.

Axes: B batch, H W pixels, P patches, V visible patches, C centers, D width, E embedding, L tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from segclip.config import PAPER_SETTINGS, PAPER_WEIGHTS, LossSettings, ModelConfig, current_name
from segclip.losses import LossInputs, Masked, Words, compute_terms, weighted_losses, weighted_sum
from segclip.model.grouping import count_regions, sample_gumbel
from segclip.model.image import ImageEncoder
from segclip.model.layers import Adapter, initialize
from segclip.model.outputs import ImageOutput, Losses, Noise
from segclip.model.reconstruction import Reconstruction, patchify, visible_count
from segclip.model.towers import TEXT_TOWERS
from segclip.text.tokenizers import tokenizer_for
from segclip.utils.files import atomic
from segclip.utils.finite import not_finite
from segclip.utils.messages import brief, shorten
from segclip.utils.tables import choose

__all__ = ["ImageOutput", "Losses", "Noise", "Parts", "SegCLIP", "combine_parts"]

MAX_SCALE = 100.0  # ceiling of the contrastive multiplier, as CLIP has it
INITIAL_SCALE = 1 / 0.07  # CLIP's start (arXiv 2103.00020, section 2.5)


class Parts(NamedTuple):
    """What pairs give of the losses before they meet the pairs of other micro-batches or processes.

    Attributes:
        image, text: (B,E) embeddings, not normalised.
        scale: multiplier of their cosines.
        terms: the losses that compare no pair with another, by name: means over these pairs, without their weights.
    """

    image: Float[Tensor, "B E"]
    text: Float[Tensor, "B E"]
    scale: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]


class SegCLIP(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="segclip",
    pipeline_tag="image-segmentation",
    paper_url="https://arxiv.org/abs/2211.14813",
):
    """The model. `SegCLIP(ModelConfig())` is the paper's ViT-B/16, untrained.

    Raises ValueError for a tower, a grouping or an activation that is in no table.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of `huggingface_hub.PyTorchModelHubMixin`: a folder
    or a hub repository with model.safetensors, config.json and a model card. `segclip.load` reads these and more.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageEncoder(config)
        self.text = choose(TEXT_TOWERS, config.text.kind, "text tower")(config)
        width = config.text.adapter
        self.text_adapter = Adapter(config.embed, width) if width else nn.Identity()
        # In a CLIP as it is no masked branch was trained; and none is, where nothing learns which patches go together.
        learns = config.head is None and getattr(self.image.grouping, "learns", True)
        self.reconstruction = Reconstruction(config, self.image.tower.heads) if learns else None
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        self.register_load_state_dict_pre_hook(_use_current_names)
        if not self.logit_scale.is_meta:  # else a file's weights are to come
            initialize(self)

    @property
    def scale(self) -> float:
        """The multiplier of cosines, as inference has it: `logit_scale` without its logarithm, MAX_SCALE at most."""
        return float(self.logit_scale.detach().exp().clamp(max=MAX_SCALE))

    def __repr__(self) -> str:
        """In one line; `print(model.image)` lists the layers."""
        image, text = self.config.image, self.config.text
        size = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        towers, regions = f"{image.kind} + {text.kind}", count_regions(self.config)
        return f"<SegCLIP {towers}, {regions} centers, {size:.1f} M parameters, {self.logit_scale.device}>"

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"]) -> ImageOutput:
        """Encode normalised photos, without noise.

        Args:
            pixels: (B,3,H,W), as `image.normalise` gives them; H and W multiples of the patch.

        Raises:
            ValueError: a side is not a multiple of the patch.
        """
        self.image.check_size(*pixels.shape[-2:])
        return self.image.gather(self.image.encode_patches(pixels), pixels)

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "B L"]:
        """Token ids of texts for `encode_text`, padded with 0; texts longer than the context are cut.

        Raises:
            ValueError: a lone str or an empty list; the model's vocabulary is not a known tokenizer's.
        """
        return tokenizer_for(self.config.text)(texts)

    def encode_text(self, token_ids: Int[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """Encode token ids as `tokenize` gives them; the embeddings are not normalised.

        Raises:
            ValueError: more tokens than the model's context, or texts in place of token ids.
        """
        if not isinstance(token_ids, Tensor):
            raise ValueError(
                f"encode_text({brief(token_ids, 40)}): expected token ids (B,L); give model.tokenize(texts), or ask "
                "Segmenter.embed_labels(labels)"
            )
        limit = self.config.text.context
        if token_ids.shape[1] > limit:
            raise ValueError(f"text of {token_ids.shape[1]} tokens; the model takes at most {limit}: cut it")
        return self.text_adapter(self.text(token_ids))

    def losses(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        token_ids: Int[Tensor, "B L"],
        superpixels: Int[Tensor, "B rows columns"] | None = None,
        *,
        noise: Noise | None = None,
        weights: Mapping[str, float] = PAPER_WEIGHTS,
    ) -> Losses:
        """The losses of a batch of pairs.

        Args:
            pixels: (B,3,H,W) as for `encode_image`.
            token_ids: (B,L), the caption of each.
            superpixels: an id per patch; None leaves out what needs them.
            noise: every random draw; None draws it.
            weights: of the terms of `segclip.losses.LOSSES`, by name; the paper's three if not given.
        """
        noise = noise or self.draw_noise(pixels)
        return combine_parts(self.parts(pixels, token_ids, superpixels, noise, weights=weights), weights)

    def parts(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        token_ids: Int[Tensor, "B L"],
        superpixels: Int[Tensor, "B rows columns"] | None,
        noise: Noise,
        *,
        weights: Mapping[str, float] = PAPER_WEIGHTS,
        settings: LossSettings = PAPER_SETTINGS,
    ) -> Parts:
        """`losses`, before the terms that compare pairs with each other.

        The masked branch encodes the visible patches only, after all else: where terms are left out, what is left
        draws the same random numbers.
        """
        self._check_learns()
        self.image.check_size(*pixels.shape[-2:])
        grid = self._grid(pixels)
        if superpixels is not None and tuple(superpixels.shape[1:]) != grid:
            raise ValueError(
                f"superpixels of {tuple(superpixels.shape[1:])} rows and columns; these photos have {grid} patches: "
                "give one id per patch"
            )

        def visible() -> Float[Tensor, "B V D"]:
            keep = noise.mask.argsort(dim=1)[:, : noise.gumbel_visible.shape[-1]]
            return self.image.encode_patches(pixels, keep)

        return self.parts_from_patches(
            self.image.encode_patches(pixels),
            visible,
            pixels,
            self.encode_text(token_ids),
            None if superpixels is None else superpixels.flatten(1),
            noise,
            weights=weights,
            settings=settings,
        )

    def parts_from_patches(
        self,
        patches: Float[Tensor, "B N D"],
        visible: Callable[[], Float[Tensor, "M V D"]],
        pixels: Float[Tensor, "_ 3 H W"],
        text: Float[Tensor, "B E"],
        superpixels: Int[Tensor, "B N"] | None,
        noise: Noise,
        *,
        weights: Mapping[str, float] = PAPER_WEIGHTS,
        settings: LossSettings = PAPER_SETTINGS,
        words: Words | None = None,
    ) -> Parts:
        """`parts` from what the trunk and the text tower gave, which frozen towers need to compute only once.

        Under autocast the losses themselves stay in full precision: small differences decide them.

        Args:
            patches: trunk features of the patches of each photo, or of some of them.
            visible: gives the trunk features of the visible patches, in ascending order of `noise.mask`, of the first
                M photos: the masked branch costs the most, and a part of the batch estimates its loss too. It is asked
                only where a loss needs them.
            pixels: as for `losses`, of the first M photos at least.
            text: embedding of each caption.
            superpixels: an id per patch; None leaves out what needs them.
            noise: as for `losses`.
            weights: as for `losses`.
            settings: of the paper's terms.
            words: of the captions; None leaves out what needs them.
        """
        self._check_learns()
        grouping = self.image.grouping(patches, noise.gumbel)
        embedding, regions = self.image.embed_regions(grouping.regions)
        losses = {
            name: loss
            for name, loss in weighted_losses(weights).items()
            if not loss.across_pairs
            and not (loss.superpixels and superpixels is None)
            and not (loss.words and words is None)
        }
        masked = None
        if any(loss.masked for loss in losses.values()):
            masked = self._reconstruct(visible(), pixels, noise)
        embedding = embedding.to(text.dtype)
        with torch.autocast(pixels.device.type, enabled=False):
            scale = self.logit_scale.exp().clamp(max=MAX_SCALE)
            inputs = LossInputs(
                image=_full(embedding),
                text=_full(text),
                scale=scale,
                settings=settings,
                hard=_full(grouping.hard),
                soft=_full(grouping.soft),
                regions=_full(regions),
                superpixels=superpixels,
                masked=masked,
                words=words and Words(words.ids, _full(words.vocabulary)),
            )
            return Parts(embedding, text, scale, compute_terms(losses, inputs))

    def _check_learns(self) -> None:
        if self.reconstruction is None:
            head, grouping = self.config.head, self.config.grouping
            what = f"a CLIP with the dense head {head!r}" if head else f"a model with the grouping {grouping!r}"
            raise ValueError(
                f"{what}, which has nothing to train: start a recipe from its weights, as in `segclip train paper "
                "--init-from FILE`"
            )

    def _reconstruct(self, visible: Float[Tensor, "M V D"], pixels: Float[Tensor, "_ 3 H W"], noise: Noise) -> Masked:
        count = len(visible)
        order = noise.mask[:count].argsort(dim=1)
        grouping = self.image.grouping(visible, noise.gumbel_visible[:count])
        assert self.reconstruction is not None
        predicted = self.reconstruction(grouping, order, self._grid(pixels))
        masked = torch.ones_like(noise.mask[:count]).scatter(1, order[:, : visible.shape[1]], 0.0)
        target = patchify(pixels[:count], self.config.image.patch)
        return Masked(predicted.to(target.dtype), target, masked)

    def _grid(self, pixels: Float[Tensor, "_ 3 H W"]) -> tuple[int, int]:
        patch = self.config.image.patch
        return pixels.shape[-2] // patch, pixels.shape[-1] // patch

    def draw_noise(self, pixels: Float[Tensor, "B 3 H W"]) -> Noise:
        """Random draws for one training step on these photos."""
        batch, regions = len(pixels), count_regions(self.config)
        patches = pixels.shape[-2] * pixels.shape[-1] // self.config.image.patch**2
        visible = visible_count(patches, self.config.mask_ratio)
        return Noise(
            gumbel=sample_gumbel((batch, regions, patches), like=pixels),
            mask=torch.rand(batch, patches, device=pixels.device, dtype=pixels.dtype),
            gumbel_visible=sample_gumbel((batch, regions, visible), like=pixels),
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "SegCLIP":
        """The mixin's, whose errors for a config.json that is no table of fields are not meant for people."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (AttributeError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{pretrained_model_name_or_path}: config.json is no configuration ({error!s:.150}); expected the one "
                "that save_pretrained wrote"
            ) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        _check_finite(self.state_dict(), save_directory)
        with atomic(save_directory / SAFETENSORS_SINGLE_FILE) as file:
            save_model(self, str(file))

    @classmethod
    def _from_pretrained(cls, **options: Any) -> "SegCLIP":
        with torch.device("meta"):  # nothing is made on the configuration's word alone
            return super()._from_pretrained(**{"strict": True, **options}).eval()  # older mixins are not strict

    @classmethod
    def _load_as_safetensor(cls, model: "SegCLIP", model_file: str, map_location: str, strict: bool) -> "SegCLIP":
        """The file's tensors, if they are the model's own; the model itself has none yet.

        Raises:
            ValueError: they are not those of its configuration; damaged, or no finite numbers.
        """
        with torch.device("cpu"):
            try:
                state = {current_name(n): tensor.float() for n, tensor in load_file(model_file, map_location).items()}
            except SafetensorError as error:
                raise ValueError(f"{model_file}: damaged ({error!s:.150}); copy or download it again") from error
            _check_finite(state, model_file)
            lacking = _check_tensors(model.state_dict(), state, model_file, strict)
            whole = cls(model.config).to(map_location) if lacking else model
            whole.load_state_dict(state, strict=False, assign=True)
            return whole.requires_grad_(True)

    @classmethod
    def _load_as_pickle(cls, model: "SegCLIP", model_file: str, map_location: str, strict: bool) -> "SegCLIP":
        raise ValueError(f"{model_file}: no safetensors file, which alone is read here; segclip.load reads others")

    @classmethod
    def _decode_arg(cls, expected_type: Any, value: Any) -> ModelConfig:
        """The content of config.json; the mixin's own way decodes no dataclass inside another, coders or not."""
        return ModelConfig.from_dict(value)


def _check_finite(state: Mapping[str, Tensor], where: str | Path) -> None:
    """Raise ValueError for weights that are NaN or infinite: they label nothing, and say nothing of it."""
    if bad := not_finite(state):
        raise ValueError(
            f"{where}: NaN or infinite weights, such as {shorten(bad[0])}; its training diverged or the file is "
            "damaged: take an earlier checkpoint"
        )


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: str, strict: bool) -> bool:
    """Whether `found` lacks some of `expected`, which only `strict` forbids; but most of them must be there.

    Raises:
        ValueError: it is not a file of such a model.
    """
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    other = {name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape}
    made, read = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (expected, found))
    if other or (strict and (missing or extra)) or made > 2 * read:
        raise ValueError(
            f"{file}: its tensors are not those that config.json asks for: {len(missing)} missing, {len(extra)} extra, "
            f"{len(other)} of another shape, such as {shorten(min(other or missing or extra))}; put the config.json "
            "beside it that was written with it"
        )
    return bool(missing)


def _use_current_names(model: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Weights that 0.1 saved have other names; `save_pretrained` writes no version into its file."""
    for name in list(state):
        state[current_name(name)] = state.pop(name)


def combine_parts(
    parts: Parts, weights: Mapping[str, float] = PAPER_WEIGHTS, settings: LossSettings = PAPER_SETTINGS
) -> Losses:
    """The losses of pairs that are the whole batch."""
    terms = parts.terms | pair_terms(parts.image, parts.text, parts.scale, weights, settings)
    terms = {name: terms[name] for name in weights if name in terms}
    return Losses(terms, weighted_sum(terms, weights))


def pair_terms(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    scale: Float[Tensor, ""],
    weights: Mapping[str, float],
    settings: LossSettings,
) -> dict[str, Float[Tensor, ""]]:
    """The losses that compare pairs with each other, of all pairs, by name."""
    losses = {name: loss for name, loss in weighted_losses(weights).items() if loss.across_pairs}
    with torch.autocast(image.device.type, enabled=False):
        return compute_terms(losses, LossInputs(_full(image), _full(text), scale, settings))


def _full(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
