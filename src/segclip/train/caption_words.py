"""Words of captions as captions: people ask for a word, and few captions are one.

"a photo of a cat" holds "a cat"; "A man sits on a sofa with his dog" holds "a man", "a sofa" and "a dog".
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from segclip.text.contrast_words import CONTRAST_WORDS
from segclip.text.labels import singular
from segclip.text.prompts import OPEN_TEMPLATES

PEOPLE = ("man", "woman", "child", "boy", "girl", "kid", "lady")
PLURALS = {"people": "person", "men": "man", "women": "woman", "children": "child"}
_PHOTO_OF = re.compile(r"a photo of (?:an? )?(.+?)\.?$", re.IGNORECASE)


def find_words(captions: Sequence[Sequence[str]]) -> list[list[str]]:
    """The names in each photo's captions, as texts such as "a dog"; one that several captions hold is there as often.

    A name is what some caption is a photo of, a contrast word of `segclip.text.labels`, or a word for people.
    """
    classes = [[found[1] for text in own if (found := _PHOTO_OF.match(text))] for own in captions]
    known = {singular(name): name for name in (*CONTRAST_WORDS, *(name for own in classes for name in own))}
    known |= {name: name for name in PEOPLE} | PLURALS
    template = OPEN_TEMPLATES[0]
    return [
        [template.format(name) for name in named or (n for text in own for n in _names(text, known))]
        for own, named in zip(captions, classes, strict=True)
    ]


def _names(text: str, known: dict[str, str]) -> list[str]:
    """The known names in a text, of one word or two."""
    words = [word if word in known else singular(word) for word in re.findall(r"[a-z]+", text.lower())]
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    return [known[name] for name in (*pairs, *words) if name in known]
