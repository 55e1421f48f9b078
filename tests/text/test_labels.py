"""The benchmarks' names, and what a list of labels must be."""

import inspect

import pytest

from segclip.config import BERT_VOCABULARY, TextConfig
from segclip.evaluate.datasets.coco_object import COCO81
from segclip.evaluate.datasets.context import CONTEXT60
from segclip.evaluate.datasets.voc2012 import VOC21
from segclip.text.labels import Labels, check_labels, split_labels, warn_of_same
from segclip.text.prompts import OPEN_TEMPLATES, PAPER_TEMPLATES
from segclip.text.reference_words import REFERENCE_WORDS
from segclip.text.tokenizers import tokenizer_for


@pytest.mark.parametrize(
    ("names", "count", "some"),
    [
        (VOC21, 21, {1: "aeroplane", 11: "table", 20: "monitor"}),
        (CONTEXT60, 60, {1: "airplane", 21: "cup", 59: "wood"}),
        (COCO81, 81, {1: "person", 10: "traffic light", 80: "toothbrush"}),
    ],
    ids=["VOC", "Context", "COCO-Object"],
)
def test_benchmarks(names: tuple[str, ...], count: int, some: dict[int, str]) -> None:
    assert len(names) == count and names[0] == "background"
    assert {index: names[index] for index in some} == some
    assert check_labels(names[1:]).names == names[1:]


def test_templates_and_reference_words() -> None:
    assert PAPER_TEMPLATES == ("a photo of a {}.",)
    assert all(template.count("{}") == 1 for template in OPEN_TEMPLATES)
    assert check_labels(REFERENCE_WORDS).names == REFERENCE_WORDS
    assert len(REFERENCE_WORDS) == 60
    assert {"sky", "wall", "baby", "table"} <= set(REFERENCE_WORDS)


def test_labels_are_stripped_and_keep_their_case_and_order() -> None:
    assert check_labels([" Potted plant\n", "cat", "猫"]).names == ("Potted plant", "cat", "猫")
    many = [f"label {i}" for i in range(5000)]
    assert check_labels(many).names == tuple(many)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([], "no labels"),
        ("cat", r"one text.*\['cat'\]"),
        (["cat", " "], "label 2 of 2 is empty"),
        (["cat", "dog", " Cat"], "label 3, 'Cat', repeats label 1"),
        (["straße", "STRASSE"], "label 2, 'STRASSE', repeats label 1"),
        (["cat", "Background"], "label 2 is 'Background'.*option `background`"),
        (["cat", 7], "label 2 is 7, a int"),
        (["cat", "\u200b\ufeff"], "label 2 of 2 is empty"),
        (["cat", "c\u00adat"], "label 2, 'cat', repeats label 1"),
        (["\ufeffbackground"], "label 1 is '.*background'"),
        (["a\x01b"], r"control character U\+0001"),
        (["children\x92s"], r"control character U\+0092.*UTF-8"),
        (["a\x85b"], r"control character U\+0085"),
        (["a\u2028b"], r"control character U\+2028"),
        (["\ud800"], r"control character U\+D800"),
    ],
    ids=[
        *("none", "str", "empty", "repeated", "casefold", "background", "int", "invisible", "twin", "mark"),
        *("C0", "cp1252", "C1", "line", "surrogate"),
    ],
)
def test_labels_that_cannot_be(labels: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):  # unwrapped: the tests' own type check would answer first
        inspect.unwrap(check_labels)(labels)


@pytest.mark.parametrize(
    ("label", "seen"),
    [
        ("\ufeffcat", "cat"),
        ("c\u200ba\u2060t\u200d", "cat"),
        ("\u202ecat\u202c ", "cat"),
        ("c\u200cat", "cat"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f469\U0001f3fd\u200d\U0001f680", "\U0001f469\U0001f3fd\u200d\U0001f680"),
        ("\u2764\ufe0f\u200d\U0001f525\u200d", "\u2764\ufe0f\u200d\U0001f525"),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),
    ],
    ids=["byte order mark", "zero width", "direction", "non-joiner", "Persian", "emoji", "emoji's end", "Devanagari"],
)
def test_letters_that_cannot_be_seen_are_dropped(label: str, seen: str) -> None:
    """But for joiners where a script, or an emoji, is written with them."""
    assert check_labels([label]).names == (seen,)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["cat,dog,grass"], ("cat", "dog", "grass")),
        (["cat, potted plant,", "dog"], ("cat", " potted plant", "dog")),
        (["cat", ""], ("cat", "")),
        ([","], ()),
        ([], ()),
    ],
)
def test_commas_part_labels(given: list[str], labels: tuple[str, ...]) -> None:
    assert split_labels(given) == labels


def test_labels_that_are_one_text_to_the_model_are_said(caplog: pytest.LogCaptureFixture) -> None:
    sentence = TextConfig(kind="sentence", vocabulary=BERT_VOCABULARY, context=8)
    long = "a b c d e f"
    for kind, labels, said in (
        (sentence, ("cat", "狗", "猫", "собака", "🐈"), ["the model knows no letter of '狗', '猫', '🐈'; "]),
        (sentence, ("cat 狗", "cat 猫", "cat"), ["'cat 狗', 'cat 猫' are one text to the model"]),
        (sentence, ("café", "cafe", "dog"), ["'café', 'cafe' are one text"]),
        (sentence, (f"{long} g", f"{long} h"), [f"'{long} g', '{long} h' are one text"]),
        (sentence, tuple(chr(0x1F400 + i) for i in range(30)), ["and 22 more; name it in other words"]),
        (TextConfig(context=77), ("狗", "猫", "cat", "dog"), []),
        (TextConfig(context=77), ("a  cat", "a cat"), ["are one text"]),
    ):
        caplog.clear()
        warn_of_same(labels, tokenizer_for(kind).own_ids(labels))
        assert len(caplog.messages) == len(said), caplog.messages
        assert all(part in message for part, message in zip(said, caplog.messages, strict=True)), caplog.messages


def test_labels_of_several_words() -> None:
    labels = check_labels(["cat | kitten", ("sofa", "couch"), "background|sky|tree", "dog"])
    assert labels == Labels((("cat", "kitten"), ("sofa", "couch"), ("dog",)), ("sky", "tree"))
    assert labels.names == ("cat", "sofa", "dog")
    assert labels.all_words == ("cat", "kitten", "sofa", "couch", "dog", "sky", "tree")
    assert labels.owners == (0, 0, 1, 1, 2, 3, 3)
    assert check_labels(labels) is labels
    assert labels.texts() == ["cat|kitten", "sofa|couch", "dog", "background|sky|tree"]
    assert check_labels(labels.texts()) == labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat|"], r"label 1 has an empty word beside a \|; remove it"),
        (["dog", "cat||kitten"], r"label 2 has an empty word beside a \|"),
        ([()], "label 1 of 1 is empty"),
        (["cat|Cat"], "label 1, 'Cat', repeats another of its words"),
        (["cat|kitten", "dog|Kitten"], "label 2, 'Kitten', repeats label 1"),
        ([("cat", "a|b")], r"label 1 has the word 'a\|b'; \| parts words"),
        (["background", "cat"], "label 1 is 'background', which is always label 0; .* name once what it is"),
        (["cat|background"], "label 1 has the word 'background', which is always label 0"),
        (["background|sky"], "no labels but the background; give at least one"),
        (["background|sky", "cat", "background|sea"], "label 3 is 'background', which is always label 0"),
        (["background|sky", "sky"], "label 2, 'sky', repeats label 1"),
    ],
)
def test_words_that_cannot_be(labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_labels(labels)
