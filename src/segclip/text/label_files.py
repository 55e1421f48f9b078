"""Files of labels."""

from pathlib import Path


def read_labels(file: Path) -> tuple[str, ...]:
    """A label a line, UTF-8, commas and all; empty lines and those that begin with # are left out.

    Raises:
        ValueError: the file cannot be read, is no text, or has no label.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 ({error.reason}, byte {error.start}); save it as UTF-8") from None
    labels = tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))
    if not labels:
        raise ValueError(f"{file}: has no label; write one a line")
    return labels
