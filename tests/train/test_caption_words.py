"""What captions say that photos show."""

import sys
from dataclasses import replace

import pytest
from helpers.small_runs import CACHED, PAIRS

from segclip.train.caption_words import find_words, words_for_losses
from segclip.train.word_kinds import kinds_of


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("Two horses near glasses of water", {"horse", "glasses", "water"}),
        ("three people, sitting", {"person"}),
        ("Knives on shelves", {"knife", "shelf"}),
        ("a group of buses", {"bus"}),
        ("a man who is playing tennis", {"man", "tennis"}),
        ("geese and sheep in the field", {"goose", "sheep", "field"}),
        ("the women's shorts", {"woman", "shorts"}),
        ("a building with a ceiling", {"building", "ceiling"}),
        ("sitting, covered and colorful", set()),
        ("a hot dog on a plate", {"hot dog", "plate"}),
    ],
)
def test_things_of_a_caption_are_its_nouns_in_the_singular(caption: str, things: set[str]) -> None:
    assert words_of(caption) == things.union(*map(kinds_of, things))


def words_of(*captions: str) -> set[str]:
    """The words of one photo."""
    words = find_words([captions], seen=1)
    return {words.vocabulary[number] for number in words.held[0]}


def test_words_have_the_kinds_above_them() -> None:
    assert kinds_of("puppy") == {"dog", "animal"}
    assert kinds_of("skier") == {"person"}
    assert kinds_of("couch") == {"sofa", "furniture"}  # either is called the other
    assert kinds_of("fire truck") == {"truck", "vehicle"}
    assert kinds_of("hot dog") == kinds_of("stone") == set()
    assert words_of("A puppy and a batter.", "batters") == {"puppy", "dog", "animal", "batter", "person"}


def test_two_words_that_often_stand_together_are_one_thing() -> None:
    captions = [["a fire hydrant in the snow"]] * 20 + [["a fire"]] * 10 + [["snow, man"]] * 19 + [["a snow man"]]
    words = find_words(captions)
    assert words.vocabulary == ("fire", "fire hydrant", "hydrant", "man", "person", "snow")
    held = [{words.vocabulary[number] for number in own} for own in words.held]
    assert held[0] == {"fire hydrant", "hydrant", "snow"} and held[20] == {"fire"}
    assert held[-1] == {"snow", "man", "person"}, "said once alone"


def test_a_word_is_in_the_vocabulary_if_it_is_said_of_enough_photos() -> None:
    captions = [["a cat", "the cats"]] * 7 + [["a cat and a plate"], ["a plate"], []]
    words = find_words(captions)
    assert words.vocabulary == ("animal", "cat")
    assert words.held == [[0, 1]] * 8 + [[], []]
    assert find_words(captions, seen=2).vocabulary == ("animal", "cat", "plate")


def test_words_are_found_where_a_loss_needs_them() -> None:
    captions = [["a cat"]] * 8
    assert words_for_losses(PAIRS, []) is None
    assert words_for_losses(replace(CACHED, losses={"contrastive": 1.0, "words": 0.0}), captions) is None
    assert words_for_losses(CACHED, captions) == find_words(captions)
    with pytest.raises(
        ValueError,
        match=r"losses words, multiple_instance, retrieval, presence need words, and no word is said of 8 of these 7 ",
    ):
        words_for_losses(CACHED, captions[1:])


def test_without_the_lexicon_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lemminflect", None)
    with pytest.raises(ValueError, match=r'lemminflect is not installed; pip install "segclip\[train\]"'):
        find_words([["an okapi that no other test names"]])
