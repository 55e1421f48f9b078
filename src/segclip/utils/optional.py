"""Libraries that only some commands need."""

from importlib import import_module
from typing import Any


def require(module: str, *, extra: str = "", package: str = "") -> Any:
    """Import a module of an optional library.

    Args:
        module: such as "ray.data".
        extra: the extra of segclip that brings it.
        package: what to install where no extra brings it, as pip takes it.

    Raises:
        ValueError: it is not installed, or something that it needs is not; says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise ValueError(f'{missing} is not installed; pip install "{package or f"segclip[{extra}]"}"') from error
