"""Checks of a recipe's fields, whose values may come from a file that was edited by hand."""

import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from segclip.utils.messages import brief

# Whether a number is in range, and what the range is.
Range = tuple[Callable[[float], bool], str]
AT_LEAST_1: Range = (lambda value: value >= 1, "at least 1")
AT_LEAST_0: Range = (lambda value: value >= 0, "at least 0")
FROM_0: Range = (lambda value: value >= 0, "a number from 0 on")
ABOVE_0: Range = (lambda value: value > 0, "a number above 0")
BELOW_1: Range = (lambda value: 0 <= value < 1, "a share from 0 to below 1")
SOME: Range = (lambda value: 0 < value <= 1, "a share above 0, to 1")
BETWEEN: Range = (lambda value: 0 < value < 1, "a share between 0 and 1, without the ends")

_NAMES = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    dict: "names with their values",
}


def check_fields(kind: type, values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Raise ValueError for a value of another type than its field is declared with, or out of its range.

    Args:
        kind: the dataclass.
        values: by the names of its fields; other names are not looked at.
        ranges: likewise; infinity and NaN are in none, and not allowed where a number has no range.
        prefix: of the names in messages.
    """
    for name, declared in get_type_hints(kind).items():
        if name in values and (expected := _unmet(value := values[name], declared, ranges.get(name))):
            raise ValueError(f"{prefix}{name} {brief(value)}; give {expected}")


def is_number(value: Any, kind: type = float) -> bool:
    """Whether a value is a finite number; with `int`, a whole one. True and False are none."""
    kinds = int if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _unmet(value: Any, declared: Any, within: Range | None) -> str | None:
    """What a field takes, where the value is something else."""
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        return None if value is None else _unmet(value, kinds[0], within)
    if origin is Literal:
        return None if value in arguments else f"one of {', '.join(arguments)}"
    if origin is tuple:
        kind, some = arguments[0], arguments[1] is ...
        good = isinstance(value, tuple) and (some or len(value) == len(arguments))
        good = good and not any(_unmet(part, kind, None) for part in value)
        return None if good else f"{'texts' if some else 'two numbers'} in a list"
    kind = origin or declared
    if kind not in (int, float):
        return None if isinstance(value, kind) else _NAMES.get(kind, f"a {kind.__name__}")
    if is_number(value, kind) and (within is None or within[0](value)):
        return None
    if within is None:
        return _NAMES[kind]
    return within[1] if kind is float or is_number(value, int) else f"{_NAMES[kind]}, {within[1]}"
