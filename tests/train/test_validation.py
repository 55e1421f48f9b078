"""Validation during a run."""

from pathlib import Path

import pytest
from helpers.benchmark_files import write_folder
from helpers.small_model import small_model

from segclip.evaluate.datasets.folder import open_folder
from segclip.train.validation import validate


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, (one, two) = small_model(), (tmp_path / "one", tmp_path / "two")
    write_folder(one, (0, 1))
    write_folder(two, (0, 1), (0, 2))
    (two / "images/1.jpg").write_bytes(b"")
    assert validate(model, open_folder(two)) == validate(model, open_folder(one)) > 0
    assert "left out of the validation" in caplog.text and "1.jpg" in caplog.text
    (two / "masks/0.png").unlink()
    with pytest.raises(ValueError, match="none of the photos and masks of the validation set can be read"):
        validate(model, open_folder(two))
