"""One check of `background`, for Python, the command line and the web."""

import pytest

from segclip.segment.background import Background, check_background


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", "auto"),
        ("AUTO", "auto"),
        (None, None),
        ("none", None),
        ("None", None),
        (0.25, 0.25),
        ("0.25", 0.25),
        (0, 0),
        ("1", 1),
    ],
)
def test_what_can_be_asked_for(given: object, expected: Background) -> None:
    assert check_background(given) == expected


@pytest.mark.parametrize("given", [-0.1, 1.5, float("nan"), "2", "black", "", True, [0.5], "x" * 1000, 10**400])
def test_what_cannot(given: object) -> None:
    with pytest.raises(ValueError, match=r"background .*; give auto, none .* 0\.\.1") as error:
        check_background(given)
    assert len(str(error.value)) < 200
