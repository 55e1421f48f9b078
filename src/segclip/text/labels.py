"""Checks of labels."""

from collections.abc import Sequence

BACKGROUND = "background"


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels without white space around them.

    Raises:
        ValueError: not a list, an empty list, an empty or repeated label (ignoring case), or "background".
    """
    if isinstance(labels, str):
        raise ValueError(f"labels {labels[:50]!r} is one text; give a list of labels, for example [{labels[:50]!r}]")
    if not len(labels):
        raise ValueError("no labels; give at least one, for example ['cat']")
    seen: dict[str, int] = {}
    for position, label in enumerate(labels, start=1):
        if not isinstance(label, str):
            raise ValueError(f"label {position} is {label!r}, a {type(label).__name__}; expected a text")
        if not (key := label.strip().casefold()):
            raise ValueError(f"label {position} of {len(labels)} is empty; remove it or name something")
        if key == BACKGROUND:
            raise ValueError(
                f"label {position} is {label!r}, which is always label 0; remove it (the option `background` "
                "decides how it is found)"
            )
        if key in seen:
            raise ValueError(f"label {position}, {label.strip()!r}, repeats label {seen[key]}; remove one of them")
        seen[key] = position
    return tuple(label.strip() for label in labels)
