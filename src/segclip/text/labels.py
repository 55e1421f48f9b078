"""Checks of labels."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

BACKGROUND = "background"
# Control characters, halves of characters, and line ends: no file of annotations can hold all of them, no terminal
# shows them, and text with those of 80-9F was decoded wrongly.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
# Letters without width, which make two labels of what looks like one: a byte order mark, marks of direction, joiners
# (U+200C, U+200D) but where scripts from Arabic to Mongolian, and emoji, are written with them.
_JOINED = "[\u0600-\u0dff\u1000-\u109f\u1780-\u18af\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]"
INVISIBLE = re.compile(
    "[\xad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    f"|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})"
)
SEPARATOR = "|"  # between the words of one label
SHOWN, LISTED = 60, 8  # letters of a label, and labels, in a warning

log = logging.getLogger(__name__)


Label = str | Sequence[str]  # a text, in which | parts words that mean one thing; or these words


@dataclass(frozen=True)
class Labels:
    """Labels that were checked.

    Attributes:
        words: of each label, those that mean it; the first is its name.
        background: words for what is none of them; empty where nobody named it.
    """

    words: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each label."""
        return tuple(own[0] for own in self.words)

    @property
    def all_words(self) -> tuple[str, ...]:
        """Of all labels, in order; those of the background come last."""
        return tuple(word for own in (*self.words, self.background) for word in own)

    @property
    def owners(self) -> tuple[int, ...]:
        """The number of the label that each of `all_words` means; that of the background is the last label's + 1."""
        return tuple(i for i, own in enumerate((*self.words, self.background)) for _ in own)

    def texts(self) -> list[str]:
        """Each label as one text, which `check_labels` takes again."""
        background = [SEPARATOR.join((BACKGROUND, *self.background))] if self.background else []
        return [SEPARATOR.join(own) for own in self.words] + background


def check_labels(labels: Labels | Sequence[Label]) -> Labels:
    """The labels without white space around their words, and without letters that cannot be seen.

    Args:
        labels: each a text; or several words that mean one thing, `"cat|kitten"` or `("cat", "kitten")`: its name is
            the first. Of `"background|sky|wall"` the words after the first say what the background is.

    Raises:
        ValueError: not a list, an empty list, an empty or repeated label or word (ignoring case), "background" alone or
            as a further word, or a word with control characters.
    """
    if isinstance(labels, Labels):
        return labels
    if isinstance(labels, str):
        raise ValueError(f"labels {labels[:50]!r} is one text; give a list of labels, for example [{labels[:50]!r}]")
    if not len(labels):
        raise ValueError("no labels; give at least one, for example ['cat']")
    seen: dict[str, int] = {}
    words: list[tuple[str, ...]] = []
    background: tuple[str, ...] = ()
    for position, label in enumerate(labels, start=1):
        first, *_ = own = _split_words(label, position, len(labels))
        if first.casefold() != BACKGROUND:
            words.append(own)
        elif len(own) > 1 and not background:
            background = own = own[1:]
        else:
            raise ValueError(
                f"label {position} is {first!r}, which is always label 0; remove it (the option `background` decides "
                f'how it is found), or name once what it is, as in "{BACKGROUND}|sky|wall"'
            )
        for word in own:
            if (key := word.casefold()) == BACKGROUND:
                raise ValueError(f"label {position} has the word {word!r}, which is always label 0; remove it")
            if key in seen:
                other = f"label {seen[key]}" if seen[key] != position else "another of its words"
                raise ValueError(f"label {position}, {word!r}, repeats {other}; remove one of them")
            seen[key] = position
    if not words:
        raise ValueError("no labels but the background; give at least one, for example 'cat'")
    return Labels(tuple(words), background)


def _split_words(label: object, position: int, count: int) -> tuple[str, ...]:
    """The words of a label. Raises ValueError for what is none, or holds what cannot be written."""
    parts = label.split(SEPARATOR) if isinstance(label, str) else label
    if not isinstance(parts, Sequence) or isinstance(parts, bytes) or not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"label {position} is {label!r}, a {type(label).__name__}; expected a text, or several that mean one thing"
        )
    for part in parts:
        if found := UNWRITABLE.search(_clean(part)):
            raise ValueError(
                f"label {position}, {part!r}, has the control character U+{ord(found[0]):04X}, which no annotation "
                "file can hold; remove it, or read the labels as UTF-8"
            )
        if SEPARATOR in part:
            raise ValueError(f"label {position} has the word {part!r}; {SEPARATOR} parts words: give them one by one")
    words = tuple(_clean(part) for part in parts)
    if not words or not all(words):
        what = f"of {count} is empty" if len(words) < 2 else f"has an empty word beside a {SEPARATOR}"
        raise ValueError(f"label {position} {what}; remove it or name something")
    return words


def _clean(label: str) -> str:
    return INVISIBLE.sub("", label).strip()


def split_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels of a command line, where commas part labels as spaces do: `cat,dog "potted plant"` is three."""
    return tuple(part for label in labels for part in label.split(",") if part.strip() or "," not in label)


def warn_of_same(words: Sequence[str], texts: Sequence[tuple[int | None, ...]]) -> None:
    """Warn of words that a model does not know at all, or cannot tell apart.

    Args:
        words: that compete with each other.
        texts: what the model's tokenizer makes of each: `TextTokenizer.own_ids`.
    """
    same: dict[tuple[int | None, ...], list[str]] = {}
    for word, text in zip(words, texts, strict=True):
        same.setdefault(text, []).append(word)
    unknown = [label for text, own in same.items() if all(token is None for token in text) for label in own]
    if unknown:
        log.warning("the model knows no letter of %s; name it in other words", _show(unknown))
    for text, own in same.items():
        if len(own) > 1 and any(token is not None for token in text):
            log.warning("%s are one text to the model, which cannot tell them apart; keep one of them", _show(own))


def _show(labels: Sequence[str]) -> str:
    shown = [repr(label if len(label) <= SHOWN else label[:SHOWN] + "...") for label in labels[:LISTED]]
    return ", ".join(shown) + (f" and {len(labels) - LISTED} more" if len(labels) > LISTED else "")
