"""Token ids equal CLIP's and BERT's, whatever the text."""

import inspect
import json

import pytest
import torch
from helpers import GOLDEN as GOLDEN_FOLDER

from segclip.config import BERT_VOCABULARY, ImageConfig, ModelConfig, TextConfig
from segclip.model.segclip import SegCLIP
from segclip.text.tokenizers import CLIP_END, CLIP_START, TextTokenizer, tokenizer_for

GOLDEN = json.loads((GOLDEN_FOLDER / "tokens.json").read_text(encoding="utf-8"))
CLIP = TextConfig(context=77)
SENTENCE = TextConfig(kind="sentence", vocabulary=BERT_VOCABULARY, context=32)


@pytest.mark.parametrize("entry", GOLDEN, ids=[entry["text"] for entry in GOLDEN])
def test_clip_ids_equal_the_authors(entry: dict) -> None:
    ids = tokenizer_for(CLIP)([entry["text"]])
    expected = [CLIP_START, *entry["ids"], CLIP_END]
    assert ids.dtype == torch.int64
    assert ids.tolist() == [expected + [0] * (77 - len(expected))]


def test_a_batch_equals_its_texts_alone() -> None:
    texts = [entry["text"] for entry in GOLDEN]
    batch = tokenizer_for(CLIP)(texts)
    assert batch.shape == (len(texts), 77)
    for row, text in zip(batch, texts, strict=True):
        assert torch.equal(row, tokenizer_for(CLIP)([text])[0])


def test_a_text_longer_than_the_context_is_cut_and_keeps_its_end() -> None:
    tokenizer = tokenizer_for(TextConfig(context=8))
    exact, long = "a b c d e f", "a b c d e f g"
    ids = tokenizer([exact, long])
    assert ids.shape == (2, 8)
    assert torch.equal(ids[0], ids[1])
    assert ids[0, 0] == CLIP_START and ids[0, -1] == CLIP_END
    assert tokenizer.is_cut([exact, long, ""]) == [False, True, False]


def test_no_text_can_spell_an_end_token() -> None:
    ids = tokenizer_for(CLIP)(["a <|endoftext|> <end> cat"])[0]
    assert (ids == CLIP_END).sum() == 1
    assert ids.argmax() == (ids > 0).sum() - 1


def test_sentence_ids_are_berts() -> None:
    ids = tokenizer_for(SENTENCE)(["Hello,  World!", "Café"])
    # the ids of bert-base-uncased: [CLS] hello , world ! [SEP]
    assert ids.tolist() == [[101, 7592, 1010, 2088, 999, 102], [101, 7668, 102, 0, 0, 0]]


def test_sentences_are_cut_to_the_context() -> None:
    tokenizer = tokenizer_for(SENTENCE)
    long = "cat " * 31
    ids = tokenizer([long, "cat"])
    assert ids.shape == (2, 32)
    assert ids[0, -1] == 102
    assert tokenizer.is_cut([long, "cat " * 30]) == [True, False]


@pytest.mark.parametrize("config", [CLIP, SENTENCE], ids=["clip", "sentence"])
def test_any_text_goes(config: TextConfig) -> None:
    ids = tokenizer_for(config)(["", " ", "猫", "кошка", "قطة", "\ud800 half a character", "\x00", "x" * 100_000])
    end = CLIP_END if config.kind == "clip" else 102
    assert (ids == end).sum(dim=1).tolist() == [1] * 8
    assert ids.max() < config.vocabulary


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("cat", "one text, 'cat'.*list"),
        ([], "no text"),
        ((), "no text"),
        (["cat", 3], "text 1 is 3, a int"),
        ([None], "text 0"),
    ],
    ids=["str", "empty", "empty tuple", "int", "None"],
)
def test_what_is_no_list_of_texts(texts: list, says: str) -> None:
    tokenizer = tokenizer_for(CLIP)
    for method in (TextTokenizer.__call__, TextTokenizer.is_cut):
        with pytest.raises(ValueError, match=says):  # unwrapped: the tests' own type check would answer first
            inspect.unwrap(method)(tokenizer, texts)


def test_loaded_once() -> None:
    assert tokenizer_for(CLIP) is tokenizer_for(TextConfig(context=77, layers=3))
    assert tokenizer_for(CLIP) is not tokenizer_for(TextConfig(context=32))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (TextConfig(vocabulary=512), "vocabulary 512.*49408"),
        (TextConfig(kind="sentence"), "vocabulary 49408.*30522"),
        (TextConfig(context=2), "context 2"),
    ],
)
def test_towers_that_fit_no_tokenizer(config: TextConfig, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tokenizer_for(config)


def test_the_model_tokenizes_for_itself() -> None:
    config = ModelConfig(
        ImageConfig(width=64, trunk_layers=1, region_layers=1, side=32, position_grid=2),
        TextConfig(width=64, layers=1, heads=1, context=16),
        embed=64,
    )
    model = SegCLIP(config).eval()
    ids = model.tokenize(["a photo of a cat.", "a dog"])
    assert ids.shape == (2, 16)
    assert model.encode_text(ids).shape == (2, 64)
