"""Checks of labels."""

import logging
import re
from collections.abc import Sequence

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
SHOWN, LISTED = 60, 8  # letters of a label, and labels, in a warning

log = logging.getLogger(__name__)


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels without white space around them, and without letters that cannot be seen.

    Raises:
        ValueError: not a list, an empty list, an empty or repeated label (ignoring case), "background", or a label
            with control characters.
    """
    if isinstance(labels, str):
        raise ValueError(f"labels {labels[:50]!r} is one text; give a list of labels, for example [{labels[:50]!r}]")
    if not len(labels):
        raise ValueError("no labels; give at least one, for example ['cat']")
    seen: dict[str, int] = {}
    for position, label in enumerate(labels, start=1):
        if not isinstance(label, str):
            raise ValueError(f"label {position} is {label!r}, a {type(label).__name__}; expected a text")
        if found := UNWRITABLE.search(_clean(label)):
            raise ValueError(
                f"label {position}, {label!r}, has the control character U+{ord(found[0]):04X}, which no annotation "
                "file can hold; remove it, or read the labels as UTF-8"
            )
        if not (key := _clean(label).casefold()):
            raise ValueError(f"label {position} of {len(labels)} is empty; remove it or name something")
        if key == BACKGROUND:
            raise ValueError(
                f"label {position} is {label!r}, which is always label 0; remove it (the option `background` "
                "decides how it is found)"
            )
        if key in seen:
            raise ValueError(f"label {position}, {_clean(label)!r}, repeats label {seen[key]}; remove one of them")
        seen[key] = position
    return tuple(map(_clean, labels))


def _clean(label: str) -> str:
    return INVISIBLE.sub("", label).strip()


def split_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels of a command line, where commas part labels as spaces do: `cat,dog "potted plant"` is three."""
    return tuple(part for label in labels for part in label.split(",") if part.strip() or "," not in label)


def warn_of_same(labels: Sequence[str], texts: Sequence[tuple[int | None, ...]]) -> None:
    """Warn of labels that a model does not know at all, or cannot tell apart.

    Args:
        labels: that compete with each other.
        texts: what the model's tokenizer makes of each: `TextTokenizer.own_ids`.
    """
    same: dict[tuple[int | None, ...], list[str]] = {}
    for label, text in zip(labels, texts, strict=True):
        same.setdefault(text, []).append(label)
    unknown = [label for text, own in same.items() if all(token is None for token in text) for label in own]
    if unknown:
        log.warning("the model knows no letter of %s; name it in other words", _show(unknown))
    for text, own in same.items():
        if len(own) > 1 and any(token is not None for token in text):
            log.warning("%s are one text to the model, which cannot tell them apart; keep one of them", _show(own))


def _show(labels: Sequence[str]) -> str:
    shown = [repr(label if len(label) <= SHOWN else label[:SHOWN] + "...") for label in labels[:LISTED]]
    return ", ".join(shown) + (f" and {len(labels) - LISTED} more" if len(labels) > LISTED else "")
