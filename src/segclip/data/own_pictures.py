"""Pictures that the package writes say so: a folder of photos may hold them, and they are no photos."""

import io
from pathlib import Path

from PIL import Image, PngImagePlugin

SOFTWARE = "Software", "segclip"  # a text of the PNG: its keyword, its value
_MARK = b"tEXt" + b"\0".join(text.encode() for text in SOFTWARE)
_COMMENT = SOFTWARE[1].encode()
_JPEG_MARK = b"\xff\xfe" + (2 + len(_COMMENT)).to_bytes(2, "big") + _COMMENT  # a comment of a JPEG
_JPEG_AT = 20  # after the start (2) and the header (18)
_MARK_AT = 37  # after the signature (8), the header (25), and the length of the text (4)


def save_own_png(image: Image.Image, file: Path | io.BytesIO, compress_level: int = 6) -> None:
    """Write a PNG that `is_own` knows.

    Args:
        image: an overlay, a mask, a sheet.
        file: a path, or a file in memory.
        compress_level: 0-9, zlib's.
    """
    texts = PngImagePlugin.PngInfo()
    texts.add_text(*SOFTWARE)
    image.save(file, "PNG", pnginfo=texts, compress_level=compress_level)


def save_own_jpeg(image: Image.Image, file: Path | io.BytesIO, quality: int = 85) -> None:
    """Write a JPEG that `is_own` knows; quality: 1-95."""
    image.save(file, "JPEG", quality=quality, comment=_COMMENT)


def is_own(path: Path) -> bool:
    """Whether the package wrote this file; not where it cannot be read."""
    marks = {".png": (_MARK_AT, _MARK), ".jpg": (_JPEG_AT, _JPEG_MARK)}
    try:
        if path.suffix.lower() not in marks or not path.is_file():  # no pipe: opening it would wait
            return False
        start, mark = marks[path.suffix.lower()]
        with path.open("rb") as file:
            return file.read(start + len(mark)).endswith(mark)
    except OSError:
        return False
