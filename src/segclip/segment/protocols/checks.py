"""Checks of a protocol's settings, for its `__post_init__`."""

from typing import Any


def check_positive(protocol: Any, *names: str) -> None:
    """Raise ValueError for a field that is neither None nor above 0."""
    for name in names:
        value = getattr(protocol, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} {value}; give a number above 0")


def check_share(protocol: Any, *names: str) -> None:
    """Raise ValueError for a field that is neither None nor in 0..1."""
    for name in names:
        value = getattr(protocol, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} {value}; give a number in 0..1")


def check_templates(templates: tuple[str, ...]) -> None:
    """Raise ValueError unless each template takes exactly one label."""
    if not templates or not all(template.count("{}") == 1 for template in templates):
        raise ValueError(f'templates {list(templates)}; give texts with one {{}} each, as in ["a photo of a {{}}."]')
