"""PNGs that the package writes say so: a folder of photos may hold them, and they are no photos."""

import io
from pathlib import Path

from PIL import Image, PngImagePlugin

SOFTWARE = "Software", "segclip"  # a text of the PNG: its keyword, its value
_MARK = b"tEXt" + b"\0".join(text.encode() for text in SOFTWARE)
_MARK_AT = 37  # after the signature (8), the header (25), and the length of the text (4)


def save_own_png(image: Image.Image, file: Path | io.BytesIO, compress_level: int = 6) -> None:
    """Write a PNG that `is_own_png` knows.

    Args:
        image: an overlay, a mask, a sheet.
        file: a path, or a file in memory.
        compress_level: 0-9, zlib's.
    """
    texts = PngImagePlugin.PngInfo()
    texts.add_text(*SOFTWARE)
    image.save(file, "PNG", pnginfo=texts, compress_level=compress_level)


def is_own_png(path: Path) -> bool:
    """Whether the package wrote this file; not where it cannot be read."""
    try:
        if path.suffix.lower() != ".png" or not path.is_file():  # no pipe: opening it would wait
            return False
        with path.open("rb") as file:
            return file.read(_MARK_AT + len(_MARK)).endswith(_MARK)
    except OSError:
        return False
