"""The benchmarks' names, and what a list of labels must be."""

import inspect

import pytest

from segclip.evaluate.datasets.coco_object import COCO81
from segclip.evaluate.datasets.context import CONTEXT60
from segclip.evaluate.datasets.voc2012 import VOC21
from segclip.text.labels import check_labels
from segclip.text.prompts import OPEN_TEMPLATES, PAPER_TEMPLATES
from segclip.text.reference_words import REFERENCE_WORDS


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
    assert check_labels(names[1:]) == names[1:]


def test_templates_and_reference_words() -> None:
    assert PAPER_TEMPLATES == ("a photo of a {}.",)
    assert all(template.count("{}") == 1 for template in OPEN_TEMPLATES)
    assert check_labels(REFERENCE_WORDS) == REFERENCE_WORDS
    assert 150 <= len(REFERENCE_WORDS) <= 250
    assert {"sky", "wall", "person", "table"} <= set(REFERENCE_WORDS)


def test_labels_are_stripped_and_keep_their_case_and_order() -> None:
    assert check_labels([" Potted plant\n", "cat", "猫"]) == ("Potted plant", "cat", "猫")
    many = [f"label {i}" for i in range(5000)]
    assert check_labels(many) == tuple(many)


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
    ],
    ids=["none", "str", "empty", "repeated", "casefold", "background", "int"],
)
def test_labels_that_cannot_be(labels: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):  # unwrapped: the tests' own type check would answer first
        inspect.unwrap(check_labels)(labels)
