"""Photos: any image file to RGB, and the paper's resize.

A photo is RGB uint8 (H,W,3), 0-255, upright. Nothing here knows about models, nor waits for torch.
"""

import functools
import io
import logging
import os
import stat
import threading
import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from segclip.data.own_pictures import is_own

Photo = UInt8[np.ndarray, "H W 3"]
PhotoSource = str | os.PathLike | bytes | Image.Image | np.ndarray  # what `open_photo` takes

MAX_PIXELS = 200_000_000  # a larger header is taken for a decompression bomb
# Raster formats that Pillow decodes by itself, an MPO as a JPEG: not EPS, for which it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
HEIF_SUFFIXES = (".heic", ".heif")  # read where pillow-heif is installed
HEIF_STARTS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"))
PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", *HEIF_SUFFIXES),
)
LISTED = 8  # files that a folder's line names of those that are left out

# How to turn a photo that a camera stored with this number (EXIF 2.32, tag 274).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What a PNG's pixels need, and no text, colour profile or date: those may be damaged, or larger than Pillow takes.
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

File = io.BytesIO | io.BufferedReader
T = TypeVar("T")
log = logging.getLogger(__name__)
_pillow_limit = threading.Lock()


class PhotoError(ValueError):
    """A photo that cannot be used; the message names it, what is wrong, and the remedy."""


def open_photo(photo: PhotoSource) -> Photo:
    """Read a photo as people see it: upright, RGB, 8 bits.

    EXIF rotation is applied, transparency is composited on white; CMYK, palette, greyscale and 16-bit photos are
    converted; of an animation the first frame is taken.

    Args:
        photo: a path, the bytes of an image file, a PIL image, or a uint8 array, 0-255: grey (H,W), RGB (H,W,3) or
            RGBA (H,W,4).

    Returns:
        RGB uint8 (H,W,3), 0-255.

    Raises:
        PhotoError: the file is missing, empty, broken, no image, or over 200 megapixels; the array is of another kind.
    """
    if isinstance(photo, np.ndarray):
        return _check_array(photo)
    if isinstance(photo, Image.Image):
        return _decode(photo, str(getattr(photo, "filename", "") or f"PIL image ({photo.mode})"))
    if isinstance(photo, (str, os.PathLike)):
        return _read_file(Path(photo))
    if isinstance(photo, bytes):
        return decode_photo(photo, f"photo of {len(photo)} bytes")
    raise PhotoError(f"a {type(photo).__name__} is no photo; give a path, bytes, a PIL image or a uint8 array (H,W,3)")


def decode_photo(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Photo:
    """`open_photo` for the bytes of an image file; `name` is what errors call it."""
    return np.array(decode_image(data, name, max_pixels))


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode_photo`, as a PIL image of mode RGB."""

    def decode(image: Image.Image) -> Image.Image:
        _check_pixels(*image.size, name, max_pixels)
        return _decode_image(image, name)

    return _with_image(io.BytesIO(data), name, decode)


def photo_suffix(data: bytes, name: str) -> str:
    """The usual suffix, such as "jpg", of an image file with these bytes. Raises PhotoError like `decode_photo`."""
    usual = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}
    return _with_image(io.BytesIO(data), name, lambda image: usual.get(str(image.format), str(image.format).lower()))


def list_photos(paths: Sequence[str | Path]) -> list[Path]:
    """Files as given; folders replaced by the photos in them, sorted by name, without subfolders.

    A folder's photos are what has the name of one: a file of any kind, which may fail when it is opened. What this
    package wrote is no photo, nor is what macOS keeps beside files (`._a.jpg`). A line of the log names what is left
    out of each folder.

    Raises:
        ValueError: a folder has no photo.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):
            found.append(path)  # a missing file is reported when it is opened, like any other bad photo
            continue
        others: dict[str, list[str]] = {}
        photos: list[Path] = []
        for file in sorted(path.iterdir()):
            if why := _no_photo(file):
                others.setdefault(why, []).append(file.name)
            else:
                photos.append(file)
        if not photos:
            raise ValueError(
                f"{path}: no photos in this folder; looked for {', '.join(PHOTO_SUFFIXES)} (not in subfolders)"
                + "".join(f"; {why}: {_list(names)}" for why, names in others.items())
            )
        for why, names in others.items():
            log.warning("%s: left out, %s: %s", path, why, _list(names))
        found += photos
    return found


def is_photo_name(file: Path) -> bool:
    """Whether a file of a folder counts as a photo: by its name, and not written by this package."""
    return _no_photo(file) is None


def _no_photo(file: Path) -> str | None:
    """Why a file of a folder is no photo; None for one that is."""
    if os.path.isdir(file):
        return "subfolders"
    if file.suffix.lower() not in PHOTO_SUFFIXES:
        return "other kinds of files"
    if file.name.startswith("._"):
        return "notes of macOS"
    return "written by segclip" if is_own(file) else None


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def paper_size(height: int, width: int, short_side: int, long_side: int = 2048) -> tuple[int, int]:
    """Height and width of the paper's evaluation resize: short side to `short_side`, long side at most `long_side`.

    Each side is int(side * scale + 0.5), and at least 1 pixel (arXiv 2211.14813, evaluation protocol).
    """
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_photo(photo: Photo, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resize to (height, width) by OpenCV's INTER_LINEAR on uint8, never antialiased: the paper's numbers need it."""
    import cv2  # here, so that `import segclip` does not wait for a large library

    height, width = size
    if photo.shape[:2] == (height, width):
        return photo
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_LINEAR)


def _check_array(photo: np.ndarray) -> Photo:
    if photo.dtype != np.uint8 or photo.ndim not in (2, 3) or photo.shape[2:] not in ((), (3,), (4,)) or not photo.size:
        raise PhotoError(
            f"array of {photo.dtype}, shape {photo.shape}; expected uint8, 0-255, grey (H,W), RGB (H,W,3) or RGBA "
            "(H,W,4): convert it, or give a PIL image"
        )
    _check_pixels(photo.shape[1], photo.shape[0], "array")
    photo = np.ascontiguousarray(photo)
    return photo if photo.shape[2:] == (3,) else np.array(_to_rgb(Image.fromarray(photo)))


def _check_pixels(width: int, height: int, name: str, most: int = MAX_PIXELS) -> None:
    if width * height > most:
        raise PhotoError(
            f"{name}: {width}x{height} is {width * height / 1e6:.0f} megapixels, maybe a decompression bomb; "
            f"at most {most // 10**6} are read: scale it down"
        )


def _read_file(path: Path) -> Photo:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise PhotoError(f"{path}: is a folder, not a photo; give the files in it")
        if not stat.S_ISREG(kind):  # to open a pipe would wait for who writes to it
            raise PhotoError(f"{path}: is a pipe or a device, not a file; save the photo as a file")
        with path.open("rb") as file:
            return _with_image(file, str(path), lambda image: _decode(image, str(path)))
    except FileNotFoundError:
        what = "a link to a file that is gone" if path.is_symlink() else "no such file"
        raise PhotoError(f"{path}: {what}; check the path") from None
    except OSError as error:
        raise PhotoError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def _with_image(file: File, name: str, work: Callable[[Image.Image], T]) -> T:
    """`work` on an image file; where a PNG cannot be read, on its pixels without texts and profiles."""
    try:
        with _open_header(file, name) as image:
            return work(image)
    except PhotoError:
        file.seek(0)
        is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
        pixels = _png_pixels(file.read()) if is_png else None
        if pixels is None:
            raise
    with _open_header(io.BytesIO(pixels), name) as image:
        return work(image)


def _png_pixels(chunks: bytes) -> bytes | None:
    """A PNG of those chunks that the pixels need, and its EXIF if it is whole; None if there is no other chunk.

    Args:
        chunks: all of them, without the signature.
    """
    kept, start = [PNG_SIGNATURE], 0
    while start < len(chunks):
        end = start + 12 + int.from_bytes(chunks[start : start + 4], "big")  # length, kind, content, check sum
        kind, check = chunks[start + 4 : start + 8], chunks[end - 4 : end]
        whole_exif = kind == b"eXIf" and check == zlib.crc32(chunks[start + 4 : end - 4]).to_bytes(4, "big")
        if kind in _PIXEL_CHUNKS or whole_exif:
            kept.append(chunks[start:end])
        start = end
    pixels = b"".join(kept)
    return None if len(pixels) == len(PNG_SIGNATURE) + len(chunks) else pixels


def _open_header(file: File, name: str) -> Image.Image:
    if not file.read(1):
        raise PhotoError(f"{name}: the file is empty (0 bytes); copy or download it again")
    file.seek(0)
    formats = _formats()
    with _pillow_limit:  # Pillow's own bomb limit is lower than ours and global: lifted for this moment only
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        except UnidentifiedImageError:
            raise PhotoError(f"{name}: {_tell_unknown(file, formats)} convert it to JPEG or PNG") from None
        except Exception as error:  # a broken header makes Pillow's readers raise nearly anything
            raise PhotoError(f"{name}: broken image header ({error}); copy or download it again") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here."""
    known = FORMATS if find_spec("PIL.AvifImagePlugin") else FORMATS[:-1]  # Pillow has AVIF since 11.3
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return known
    return (*known, "HEIF")


def _tell_unknown(file: File, formats: Sequence[str]) -> str:
    file.seek(4)
    if file.read(8) in HEIF_STARTS and "HEIF" not in formats:
        return "HEIC photos are read where pillow-heif is installed; pip install pillow-heif, or"
    return f"not an image of a known format ({', '.join(formats)});"


def _decode(image: Image.Image, name: str) -> Photo:
    return np.array(_decode_image(image, name))


def _decode_image(image: Image.Image, name: str) -> Image.Image:
    _check_pixels(*image.size, name)
    if 0 in image.size:
        raise PhotoError(f"{name}: {image.width}x{image.height} has no pixels; give a photo of at least 1x1")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # truncated or corrupt data makes Pillow's decoders raise nearly anything
        raise PhotoError(f"{name}: truncated or damaged image ({error}); copy or download it again") from error
    try:
        rgb = _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        raise PhotoError(f"{name}: colours of mode {image.mode} cannot be read ({error}); save it as RGB") from error
    turn = _turn(image)
    if turn is None:
        return rgb
    upright = rgb.transpose(turn)
    upright.info = {}  # its metadata say how the photo was stored: nobody is to turn it once more
    return upright


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(_scale_to_uint8(np.asarray(image), full=65535.0)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        return Image.fromarray(_scale_to_uint8(values, full=_full_scale(values, image.mode))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # Pillow knows no shorter way
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _full_scale(values: np.ndarray, mode: str) -> float | None:
    """White of a 32-bit image, which does not say it: the smallest usual one that holds all values; None to stretch."""
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() < 0:
        return None
    return next((full for full in usual if finite.max() <= full), None)


def _scale_to_uint8(values: np.ndarray, full: float | None) -> np.ndarray:
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if full is None:
        low = values[finite].min() if finite.any() else 0.0
        values, full = values - low, (np.ptp(values[finite]) if finite.any() else 0.0) or 1.0
    return np.where(finite, np.rint(np.clip(values / full, 0, 1) * 255), 0).astype(np.uint8)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn a photo upright; its metadata are read, and never written anew, for they may be of any kind."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata is no reason to refuse the pixels
        return None
