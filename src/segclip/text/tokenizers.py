"""Tokenizers of the two text towers: CLIP's byte-pair encoding and BERT's word pieces.

Axes: B texts, L tokens.
"""

import functools
import gzip
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Encoding, Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from segclip.config import BERT_VOCABULARY, CLIP_VOCABULARY, TextConfig
from segclip.utils.tables import choose

PADDING = 0
CLIP_START, CLIP_END = CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1
# How CLIP splits a text into words (openai/CLIP, clip/simple_tokenizer.py).
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TextTokenizer:
    """Turns texts into the token ids of one text tower; made by `tokenizer_for`."""

    def __init__(self, tokenizer: Tokenizer, clean: Callable[[str], str]) -> None:
        self._tokenizer = tokenizer
        self._clean = clean

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "B L"]:
        """Token ids with start and end, padded with 0; texts that are too long are truncated and keep their end token.

        Raises:
            ValueError: a str instead of a list, no texts, or an item that is not a str.
        """
        return torch.tensor([encoding.ids for encoding in self._encode(texts)])

    def is_cut(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is longer than the context, and so truncated. Raises as `__call__` does."""
        return [bool(encoding.overflowing) for encoding in self._encode(texts)]

    def own_ids(self, texts: Sequence[str]) -> list[tuple[int | None, ...]]:
        """Each text's token ids without start, end and padding; None for what is not known. Raises as `__call__`."""
        unknown = self._tokenizer.token_to_id("[UNK]")
        return [
            tuple(
                None if i == unknown else i
                for i, added in zip(one.ids, one.special_tokens_mask, strict=True)
                if not added
            )
            for one in self._encode(texts)
        ]

    def _encode(self, texts: Sequence[Any]) -> list[Encoding]:
        return self._tokenizer.encode_batch([self._clean(text) for text in _checked(texts)])


def tokenizer_for(config: TextConfig) -> TextTokenizer:
    """The tokenizer of a text tower, loaded once.

    "clip" gives (B,context) ids, "sentence" (B,L) with L the longest text of the batch, at most the context.

    Raises:
        ValueError: an unknown tokenizer; the tower's vocabulary is not the tokenizer's.
    """
    name = config.tokenizer or config.kind
    kind = choose(TOKENIZERS, name, "tokenizer")
    if config.vocabulary != kind.vocabulary:
        raise ValueError(
            f"text vocabulary {config.vocabulary} is not that of the {name} tokenizer ({kind.vocabulary}); "
            "give the model token ids of your own"
        )
    if config.context < 3:
        raise ValueError(
            f"text context {config.context} leaves no room between the start and end tokens; use 3 or more"
        )
    return _load(kind, config.context)


@dataclass(frozen=True)
class Kind:
    """A tokenizer, and how it is used.

    Attributes:
        vocabulary: how many token ids there are.
        make: loads it.
        clean: what is done to a text before.
        fill: pad every text to the context, instead of to the longest of the batch.
    """

    vocabulary: int
    make: Callable[[], Tokenizer]
    clean: Callable[[str], str]
    fill: bool


@functools.cache
def _load(kind: Kind, context: int) -> TextTokenizer:
    tokenizer = kind.make()
    tokenizer.enable_truncation(max_length=context)
    tokenizer.enable_padding(pad_id=PADDING, length=context if kind.fill else None)
    return TextTokenizer(tokenizer, kind.clean)


def _clip_tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, right in map(str.split, _asset("clip_merges.txt.gz").splitlines())]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == CLIP_START

    # Start and end are not in the vocabulary, so that no text can spell an end token.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", CLIP_START), ("<end>", CLIP_END)]
    )
    return tokenizer


def _sentence_tokenizer() -> Tokenizer:
    return Tokenizer.from_str(_asset("sentence_tokenizer.json.gz"))


def _clean_clip(text: str) -> str:
    """CLIP's cleaning: repair mojibake, unescape HTML twice, collapse white space, lower case."""
    import ftfy  # here, because importing it is slow

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _checked(texts: Sequence[Any]) -> list[str]:
    """The texts, checked.

    Surrogates, which a shell with another encoding can pass, become "?", because the library refuses them.
    """
    if isinstance(texts, str):
        raise ValueError(f"one text, {texts[:50]!r}, where a list of texts is expected; put it in a list")
    if not len(texts):
        raise ValueError("no text to tokenize; give at least one")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {index} is {text!r}, a {type(text).__name__}; expected a str")
    return [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]


def _asset(name: str) -> str:
    return gzip.decompress(resources.files("segclip").joinpath("assets", name).read_bytes()).decode("utf-8")


# By the kind of the text tower, or by `TextConfig.tokenizer`; anyone can add one.
TOKENIZERS: dict[str, Kind] = {
    "clip": Kind(CLIP_VOCABULARY, _clip_tokenizer, _clean_clip, fill=True),
    "sentence": Kind(BERT_VOCABULARY, _sentence_tokenizer, str, fill=False),
}
