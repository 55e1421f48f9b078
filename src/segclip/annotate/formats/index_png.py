"""Index PNGs: 0 the background, i the i-th label; 16-bit from 256 labels on."""

from segclip.annotate.formats.format import Format, encode_png
from segclip.annotate.segments import PhotoSegments
from segclip.segment.result import Segmentation


def make_png(result: Segmentation, photo: PhotoSegments) -> bytes:
    """With a palette, or greyscale in 16 bits. Raises ValueError for more labels than these hold."""
    return encode_png(result.index_image())


INDEX_PNG = Format(photo_files={"masks/{}.png": make_png})
