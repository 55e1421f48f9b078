"""Words of captions as captions."""

from segclip.text.labels import singular
from segclip.train.caption_words import find_words


def test_words_of_captions_are_names_that_are_known() -> None:
    captions = [
        ["a photo of a street cat.", "an animal"],
        ["A man and two Street Cats walk past a zylophone"],
        ["three people on a bench", "people, sitting"],
        ["A photo of an aardvark"],
        ["nothing here is known but aardvarks"],
        [],
    ]
    assert find_words(captions) == [
        ["a street cat"],
        ["a street cat", "a man", "a cat"],  # "cat" is a contrast word
        ["a person", "a bench", "a person"],
        ["a aardvark"],
        ["a aardvark"],
        [],
    ]


def test_singular() -> None:
    words = {"Butterflies": "butterfly", "buses": "bus", "dishes": "dish", "boxes": "box", "glass": "glass"}
    assert {word: singular(word) for word in words} == words
    assert singular("dining  tables") == "dining table"
