"""Settings of a protocol as text: `--set FIELD=VALUE` for the fields of any protocol."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from segclip.segment.protocols.protocol import Protocol

P = TypeVar("P", bound=Protocol)
_EXPECTED = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}


def settings_of(protocol: Protocol) -> dict[str, Any]:
    """The fields of a protocol and their values, except those with `repr=False`, which are not settings."""
    return {field.name: getattr(protocol, field.name) for field in fields(protocol) if field.repr}


def change_settings(protocol: P, changes: Sequence[str]) -> P:
    """The protocol with fields changed by texts like "level=0.6" or 'templates=["a {}"]'.

    Raises:
        ValueError: no such field, a value of the wrong type, or one that the protocol refuses.
    """
    hints, values = get_type_hints(type(protocol)), {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in (known := settings_of(protocol)):
            raise ValueError(f"setting {change!r}; expected FIELD=VALUE with one of the fields {', '.join(known)}")
        values[name] = _parse(name, text, hints[name])
    return replace(protocol, **values)


def _parse(name: str, text: str, hint: Any) -> Any:
    """A value in JSON; a text may omit its quotes, a list of one its brackets."""
    try:
        return _convert(json.loads(text), hint)
    except ValueError:  # not JSON, or JSON of another type: it may be a text
        pass
    try:
        return _convert(text, hint)
    except ValueError:
        raise ValueError(f"setting {name}={text}; expected {_describe(hint)}") from None


def _convert(value: Any, hint: Any) -> Any:
    """The value with the type of its field. Raises ValueError for another type."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        return tuple(_convert(one, kind) for one in (value if isinstance(value, list) else [value]))
    for kind in _alternatives(hint):
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind or (get_origin(kind) is Literal and value in get_args(kind)):
            return value
    raise ValueError


def _describe(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"[{_describe(get_args(hint)[0])}, ...]"
    each = [get_args(kind) if get_origin(kind) is Literal else [kind] for kind in _alternatives(hint)]
    return " or ".join(_EXPECTED.get(kind, str(kind)) for kinds in each for kind in kinds)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
