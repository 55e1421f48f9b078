"""The protocols by name: how photos are cut, named and drawn, and what of it can be changed."""

import json
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from segclip.segment.protocols.open import OpenSettings
from segclip.segment.protocols.paper import PaperSettings

Protocol = Literal["open", "paper", "groupvit"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
Settings = OpenSettings | PaperSettings

_PRESETS: dict[Protocol, Settings] = {
    "open": OpenSettings(),
    "paper": PaperSettings(),
    # arXiv 2202.11094 evaluates so: larger photos, overlapping windows.
    "groupvit": PaperSettings(short=448, window=448, stride=224, threshold=0.95),
}
# Thresholds chosen for a benchmark: arXiv 2211.14813 and 2202.11094.
_THRESHOLDS: dict[Protocol, dict[str, float]] = {
    "open": {},
    "paper": {"voc2012": 0.80, "context60": 0.25, "coco-object": 0.65},
    "groupvit": {"voc2012": 0.95, "context60": 0.35, "coco-object": 0.95},
}
_SHARES = ("threshold", "vote", "too_near")
_EXPECTED = dict.fromkeys(_SHARES, "a number in 0..1") | {
    "scales": "numbers above 0, as in scales=[1, 2]",
    "templates": 'texts with one {} each, as in templates=["a {}", "a photo of a {}."]',
}


def settings_of(protocol: Protocol, benchmark: str | None = None) -> Settings:
    """A protocol's settings, with the threshold published for a benchmark. Raises ValueError for an unknown one."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    settings = _PRESETS[protocol]
    threshold = _THRESHOLDS[protocol].get(benchmark or "")
    return settings if threshold is None else replace(settings, threshold=threshold)


def change_settings(settings: Settings, changes: tuple[str, ...]) -> Settings:
    """Settings with fields changed by texts like "stride=0.25" or "scales=[1, 2]".

    Raises:
        ValueError: no such field, or a value of another kind.
    """
    hints = get_type_hints(type(settings))
    for change in changes:
        name, _, text = change.partition("=")
        if name not in hints:
            known = ", ".join(field.name for field in fields(settings))
            raise ValueError(f"setting {change!r}; expected FIELD=VALUE, the fields being {known}")
        settings = replace(settings, **{name: _parse(name, text, hints[name])})
    return settings


def _parse(name: str, text: str, hint: Any) -> Any:
    """A value in JSON; a text may stand without its quotes, a list of one without its brackets."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if get_origin(hint) is tuple:
        values, kind = value if isinstance(value, list) else [value], get_args(hint)[0]
        if values and all(_fits(name, one, kind) for one in values):
            return tuple(map(kind, values))
    else:
        for kind in get_args(hint) or (hint,):
            if _fits(name, value, kind):
                return None if value is None else kind(value)
    raise ValueError(f"setting {name}={text}; expected {_EXPECTED.get(name, 'a number above 0')}")


def _fits(name: str, value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and value.count("{}") == 1
    if kind is type(None) or isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
        return kind is type(None) and value is None
    return 0 <= value <= 1 if name in _SHARES else value > 0
