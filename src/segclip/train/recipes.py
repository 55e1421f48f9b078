"""Named training runs, each a function that returns its configuration."""

from segclip.config import BERT_VOCABULARY, ImageConfig, ModelConfig, TextConfig
from segclip.train.config import CacheConfig, TrainConfig

# Of every model: what the paper keeps as CLIP had it.
INPUTS = (
    "image.tower.patch_embed", "image.tower.class_token", "image.tower.positions", "image.tower.norm_pre",
    "text.token_embedding", "text.positions",
)  # fmt: skip
TOWERS = ("image.tower.", "text.")
# What decides which center a patch goes to.
ASSIGNMENT = tuple(f"image.grouping.{part}" for part in ("centers", "blocks", "norm_centers", "key", "norm_key"))


def paper() -> TrainConfig:
    """The paper's: CC3M and COCO captions, from CLIP's ViT-B/16 (arXiv 2211.14813, training details).

    Command: segclip train paper --data SHARDS --out RUN --init-from ViT-B-16.pt
    Hardware: eight A100 (the authors); with --micro-batch, one GPU of 24 GB, or a CPU. Hours and result: unmeasured.
    """
    return TrainConfig(frozen=INPUTS, slow=("image.tower.trunk", "text.", "logit_scale"))


def mini() -> TrainConfig:
    """The embedded model's regions and text adapter over its frozen towers.

    Command: runs/mini.sh PAIRS ... RUN
    Hardware: two CPU cores. Hours and result: docs/results.md.
    """
    return TrainConfig(
        init_from="mini",
        cache=CacheConfig(patches=128),
        init_centers="k-means",
        steps=800,
        batch=256,
        captions="one",
        crop_scale=(1.0, 1.0),  # captions are of whole photos
        losses={
            "contrastive": 0.5,
            "reconstruction": 0.1,
            "retrieval": 8.0,
            "presence": 1.0,
            # In which words compete for a region: beside `retrieval` they blur where things are (docs/lab-notes.md).
            "words": 0.0,
            "multiple_instance": 0.0,
        },
        soft_target_scale=12.0,
        # The centers stay where k-means put them: most of those that learn end up without a patch (docs/lab-notes.md).
        # So the superpixel loss, which moves patches between centers, is left out.
        frozen=(*TOWERS, *ASSIGNMENT),
        lr=1e-3,
        precision="bf16",
        save_every=50,
    )


def debug() -> TrainConfig:
    """A small model, from nothing, on generated scenes: does training work here?

    Command: segclip train debug --out RUN
    Hardware: two CPU cores, about a minute. Result: docs/results.md.
    """
    return TrainConfig(
        model=ModelConfig(
            ImageConfig("clip", width=64, trunk_layers=2, region_layers=1, patch=8, side=64, position_grid=8),
            TextConfig("sentence", width=64, layers=1, heads=1, context=32, vocabulary=BERT_VOCABULARY),
            embed=64,
            centers=8,
            decoder_layers=1,
        ),
        init_centers="k-means",  # from random ones it takes far longer than a minute
        steps=140,
        batch=64,
        captions="one",
        superpixel_loss="one-softmax",  # the other one is too weak to matter in so few steps
        lr=2e-3,
        save_every=35,
        validate_every=35,
        workers=1,
    )


RECIPES = {"paper": paper, "mini": mini, "debug": debug}
