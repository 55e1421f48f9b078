"""A random model with real tokenizers, small enough to run hundreds of times."""

from dataclasses import replace

import torch

from segclip.config import BERT_VOCABULARY, ImageConfig, ModelConfig, TextConfig
from segclip.model.segclip import SegCLIP

CLIP = ModelConfig(
    ImageConfig("clip", width=64, trunk_layers=2, region_layers=1, patch=16, side=64, position_grid=4),
    TextConfig("clip", width=64, layers=1, heads=1, context=32),
    embed=64,
    centers=4,
    decoder_layers=1,
)
SENTENCE = ModelConfig(
    ImageConfig("dinov2", width=64, trunk_layers=2, region_layers=1, patch=14, side=56, position_grid=4),
    TextConfig("sentence", width=64, layers=1, heads=1, context=32, vocabulary=BERT_VOCABULARY),
    embed=64,
    centers=4,
    decoder_layers=1,
)
ADAPTED = replace(SENTENCE, text=replace(SENTENCE.text, adapter=96))
# A CLIP as it is.
PLAIN = replace(CLIP, image=replace(CLIP.image, class_token=True), grouping="patches", head="naclip", decoder_layers=0)


def small_model(config: ModelConfig = CLIP) -> SegCLIP:
    torch.manual_seed(0)
    return SegCLIP(config).eval()
