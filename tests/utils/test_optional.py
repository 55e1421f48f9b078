"""An optional library that is missing is named, with the command that installs it."""

import json
import sys

import pytest

from segclip.utils.optional import require


def test_what_is_there() -> None:
    assert require("json", extra="none") is json


@pytest.mark.parametrize(
    ("given", "command"), [({"extra": "scale"}, r'"segclip\[scale\]"'), ({"package": "ray>=2"}, '"ray>=2"')]
)
def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], command: str) -> None:
    monkeypatch.setitem(sys.modules, "no_such_library", None)
    for module in ("no_such_library", "no_such_library.part"):
        with pytest.raises(ValueError, match=f"^no_such_library is not installed; pip install {command}"):
            require(module, **given)
