"""Labels -> text embeddings, each computed once.

Axes: K labels, T templates, L tokens, E embedding.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segclip.model.segclip import SegCLIP
from segclip.text.tokenizers import PADDING, TextTokenizer, tokenizer_for

BATCH = 64  # texts encoded at once
REMEMBERED = 20_000  # embeddings kept, least recently used dropped first: 40 MB with 512 channels

log = logging.getLogger(__name__)


class LabelEmbedder:
    """Embeds labels with a model's text tower, and remembers the embedding of each label and set of templates.

    Args:
        model: its weights must not change any more, since remembered embeddings would not follow.
    """

    def __init__(self, model: SegCLIP) -> None:
        self.model = model
        self._embeddings: OrderedDict[tuple[tuple[str, ...], str], Tensor] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, labels: Sequence[str], templates: tuple[str, ...]) -> Float[Tensor, "K E"]:
        """The mean over the templates of the unnormalised embeddings, L2-normalised."""
        new = list(dict.fromkeys(label for label in labels if (templates, label) not in self._embeddings))
        if new:
            texts = [template.format(label) for label in new for template in templates]
            self._warn_cut(new, texts)
            means = self._encode(texts).unflatten(0, (len(new), len(templates))).mean(dim=1)
            for label, embedding in zip(new, F.normalize(means, dim=-1), strict=True):
                self._embeddings[templates, label] = embedding
        for label in labels:
            self._embeddings.move_to_end((templates, label))
        result = torch.stack([self._embeddings[templates, label] for label in labels])
        while len(self._embeddings) > REMEMBERED:
            self._embeddings.popitem(last=False)
        return result

    def _encode(self, texts: list[str]) -> Float[Tensor, "N E"]:
        device = next(self.model.parameters()).device
        return torch.cat([self._encode_batch(texts[i : i + BATCH], device) for i in range(0, len(texts), BATCH)])

    def _encode_batch(self, texts: list[str], device: torch.device) -> Float[Tensor, "N E"]:
        token_ids = self._tokenizer(texts)
        # Padding follows the text and, as attention is causal or masked, changes no embedding: leave it out.
        longest = int((token_ids != PADDING).any(dim=0).nonzero()[-1]) + 1
        return self.model.encode_text(token_ids[:, :longest].to(device))

    def _warn_cut(self, labels: list[str], texts: list[str]) -> None:
        """Warn of labels that are longer than the context, whose end is ignored."""
        each = len(texts) // len(labels)
        cut = self._tokenizer.is_cut(texts)
        for i, label in enumerate(labels):
            if any(cut[i * each : (i + 1) * each]):
                shown = label if len(label) <= 60 else label[:60] + "..."
                log.warning(
                    "label %r is longer than the model's %d tokens; the rest of it is ignored", shown, self._context
                )

    @property
    def _context(self) -> int:
        return self.model.config.text.context

    @property
    def _tokenizer(self) -> TextTokenizer:
        return tokenizer_for(self.model.config.text)
