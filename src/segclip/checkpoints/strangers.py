"""Weights that people take for a CLIP that this package opens, told by the names of their tensors.

Each is refused with what it is, and what would do.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from segclip.checkpoints.native import EXPECTED, CheckpointError

LIKE_IT = "take a CLIP with a plain ViT instead, such as openai/clip-vit-base-patch16"

# Names of tensors, what they belong to, and what would do; the first that is found tells. Sources: the model code of
# transformers (models/siglip, blip, chinese_clip, clipseg, groupvit), OpenCLIP (timm_model.py, hf_model.py,
# coca_model.py, modified_resnet.py), EVA-CLIP, Salesforce's BLIP and Apple's MobileCLIP.
STRANGERS: tuple[tuple[str, str, str], ...] = (
    (
        r"\.lora_(A|B|down|up)\b",
        "a LoRA, which is not the whole of the weights",
        "merge it into its CLIP and save that",
    ),
    (r"^visual\.(layer1|attnpool)\.", "OpenAI's CLIP with a ResNet image tower", LIKE_IT),
    (r"^(vision_model\.head\.probe$|visual\.trunk\.attn_pool\.)", "SigLIP, whose towers are not CLIP's", LIKE_IT),
    (
        r"^(image_encoder\.|visual\.trunk\.(stem|stages|head)\.)",
        "a CLIP with a convolutional image tower (MobileCLIP, ConvNeXt)",
        LIKE_IT,
    ),
    (r"^visual\.trunk\.", "an OpenCLIP model whose image tower is one of timm", LIKE_IT),
    (r"^visual\.blocks\.", "EVA-CLIP, whose image tower is not CLIP's", LIKE_IT),
    (r"^(visual_encoder|text_decoder\.bert|vision_proj)\b", "BLIP", LIKE_IT),
    (r"^vision_model\.encoder\.layers\.\d+\.self_attn\.qkv\.", "BLIP", LIKE_IT),
    (r"^(qformer|query_tokens|language_model)\b", "a language model that is shown images (BLIP-2, LLaVA)", LIKE_IT),
    (r"^text_decoder\.", "CoCa, which has a decoder of captions", LIKE_IT),
    (r"^vision_model\.encoder\.stages\.", "GroupViT, whose image tower is not CLIP's", LIKE_IT),
    (r"^clip\.(vision|text)_model\.", "CLIPSeg, which was trained on masks", LIKE_IT),
    (
        r"^(text_model\.encoder\.layer|bert|text\.transformer\.(embeddings|encoder))\.",
        "a CLIP whose text tower is a BERT (Chinese-CLIP, XLM-RoBERTa)",
        LIKE_IT,
    ),
    (r"^text\.transformer\.resblocks\.", "an OpenCLIP model with a text tower of another kind", LIKE_IT),
)
IMAGE = r"^(visual|vision_model|vision_encoder)\."
TEXT = r"^(transformer\.resblocks|token_embedding|text_model)\."
# Names without a tower's: transformers saves CLIPTextModel so since its version 5.
TEXT_ALONE = r"^(embeddings\.token_embedding|text_projection)\."
IMAGE_ALONE = r"^(cls_token|class_token|blocks\.0\..*|embeddings\.(cls_token|class_embedding))$"
OTHER_HALF = "give the whole CLIP, with both towers, such as openai/clip-vit-base-patch16"


def refuse_strangers(names: Iterable[str], path: Path) -> None:
    """Raise CheckpointError where tensors' names tell of a model that no adapter reads.

    Args:
        names: of the tensors, without prefixes.
        path: of the file, for the errors.
    """
    names = list(names)
    for pattern, what, remedy in STRANGERS:
        if _any(pattern, names):
            raise _stranger(path, what, remedy)
    if any(name.startswith(("clip.visual.", "image.")) for name in names):  # a whole SegCLIP's
        return
    image, text = _any(IMAGE, names), _any(TEXT, names)
    if (text and not image) or (not image and _any(TEXT_ALONE, names)):
        raise _stranger(path, "a text tower alone (such as CLIPTextModel), without an image tower", OTHER_HALF)
    if (image and not text) or (not text and _any(IMAGE_ALONE, names)):
        raise _stranger(
            path, "an image tower alone (such as CLIPVisionModel, DINOv2), without a text tower", OTHER_HALF
        )


def _any(pattern: str, names: list[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _stranger(path: Path, what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{path}: looks like {what}; {remedy}, or another file: {EXPECTED}")
