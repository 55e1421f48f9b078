"""What comes from elsewhere (names of tensors, fields of a file, what a library says) in a message for people."""

from typing import Any


def shorten(text: str, limit: int = 80) -> str:
    """The text on one line, without letters that a terminal would act upon, its middle left out past the limit."""
    if len(text) > limit:
        start, end = (limit - 3) * 2 // 3, (limit - 3) // 3
        text = f"{text[:start]}...{text[-end:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def brief(value: Any, limit: int = 80) -> str:
    """A value as Python writes it, shortened; its type where Python cannot write it."""
    try:
        return shorten(repr(value), limit)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list of lists of lists
        return f"of type {type(value).__name__}"
