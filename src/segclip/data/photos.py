"""Photos: any image file to RGB, and the paper's resize.

A photo is RGB uint8 (H,W,3), 0-255, upright. Nothing here knows about models, nor waits for torch.
"""

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Photo = UInt8[np.ndarray, "H W 3"]
PhotoSource = str | os.PathLike | Image.Image | np.ndarray  # what `open_photo` takes

MAX_PIXELS = 200_000_000  # a larger header is taken for a decompression bomb
# Raster formats that Pillow decodes by itself: not EPS, for which it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")

_pillow_limit = threading.Lock()


class PhotoError(ValueError):
    """A photo that cannot be used; the message names it, what is wrong, and the remedy."""


def open_photo(photo: PhotoSource) -> Photo:
    """Read a photo as people see it: upright, RGB, 8 bits.

    EXIF rotation is applied, transparency is composited on white; CMYK, palette, greyscale and 16-bit photos are
    converted; of an animation the first frame is taken.

    Args:
        photo: a path, a PIL image, or RGB uint8 (H,W,3), 0-255.

    Returns:
        RGB uint8 (H,W,3), 0-255.

    Raises:
        PhotoError: the file is missing, empty, broken, no image, or over 200 megapixels; the array is not
            uint8 (H,W,3).
    """
    if isinstance(photo, np.ndarray):
        return _check_array(photo)
    if isinstance(photo, Image.Image):
        return _decode(photo, str(getattr(photo, "filename", "") or f"PIL image ({photo.mode})"))
    if isinstance(photo, (str, os.PathLike)):
        return _read_file(Path(photo))
    raise PhotoError(f"a {type(photo).__name__} is no photo; give a path, a PIL image or a uint8 (H,W,3) array")


def decode_photo(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Photo:
    """`open_photo` for the bytes of an image file; `name` is what errors call it."""
    return np.array(decode_image(data, name, max_pixels))


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode_photo`, as a PIL image of mode RGB."""
    with io.BytesIO(data) as file, _open_header(file, name) as image:
        _check_pixels(*image.size, name, max_pixels)
        return _decode_image(image, name)


def photo_suffix(data: bytes, name: str) -> str:
    """The usual suffix, such as "jpg", of an image file with these bytes. Raises PhotoError like `decode_photo`."""
    with io.BytesIO(data) as file, _open_header(file, name) as image:
        return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(str(image.format), str(image.format).lower())


def list_photos(paths: Sequence[str | Path]) -> list[Path]:
    """Files as given; folders replaced by the photos in them, sorted by name, without subfolders.

    Raises:
        ValueError: a folder has no photo.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)  # a missing file is reported when it is opened, like any other bad photo
            continue
        photos = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
        if not photos:
            suffixes = ", ".join(PHOTO_SUFFIXES)
            raise ValueError(f"{path}: no photos in this folder; looked for {suffixes} (not in subfolders)")
        found += photos
    return found


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
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] != 3 or photo.size == 0:
        raise PhotoError(
            f"array of {photo.dtype}, shape {photo.shape}; expected RGB uint8 (H,W,3), 0-255: "
            "convert it, or give a PIL image"
        )
    _check_pixels(photo.shape[1], photo.shape[0], "array")
    return np.ascontiguousarray(photo)


def _check_pixels(width: int, height: int, name: str, most: int = MAX_PIXELS) -> None:
    if width * height > most:
        raise PhotoError(
            f"{name}: {width}x{height} is {width * height / 1e6:.0f} megapixels, maybe a decompression bomb; "
            f"at most {most // 10**6} are read: scale it down"
        )


def _read_file(path: Path) -> Photo:
    if path.is_dir():
        raise PhotoError(f"{path}: is a folder, not a photo; give the files in it")
    try:
        with path.open("rb") as file, _open_header(file, str(path)) as image:
            return _decode(image, str(path))
    except FileNotFoundError:
        raise PhotoError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def _open_header(file: io.BytesIO | io.BufferedReader, name: str) -> Image.Image:
    if not file.read(1):
        raise PhotoError(f"{name}: the file is empty (0 bytes); copy or download it again")
    file.seek(0)
    with _pillow_limit:  # Pillow's own bomb limit is lower than ours and global: lifted for this moment only
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            formats = ", ".join(FORMATS)
            raise PhotoError(f"{name}: not an image of a known format ({formats}); convert it to JPEG or PNG") from None
        except Exception as error:  # a broken header makes Pillow's readers raise nearly anything
            raise PhotoError(f"{name}: broken image header ({error}); copy or download it again") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


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
    except ValueError as error:
        raise PhotoError(f"{name}: colours of mode {image.mode} cannot be read ({error}); save it as RGB") from error
    orientation = _orientation(image)
    return rgb if orientation == 1 else _upright(rgb, orientation)


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


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata is no reason to refuse the pixels
        return 1


def _upright(rgb: Image.Image, orientation: int) -> Image.Image:
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(rgb)
