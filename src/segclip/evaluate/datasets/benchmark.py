"""What benchmarks have in common: photos with masks, their names, and how their files are found and read.

A mask is uint8 (H,W): the index of a class, or 255 where nobody labelled the pixel.
"""

import io
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL.PngImagePlugin import PngImageFile

from segclip.data.photos import MAX_PIXELS, PHOTO_SUFFIXES, open_photo

IGNORED = 255
MAX_CLASSES = 255  # in 8 bits, beside IGNORED
PNG = b"\x89PNG\r\n\x1a\n"  # how its files begin
GREY, PALETTE = 0, 3  # its colour types that hold one number a pixel
MAX_BYTES = 2 * MAX_PIXELS  # of compressed pixels

Mask = UInt8[ndarray, "H W"]


class MaskError(ValueError):
    """A mask that cannot be used; the message names it, what is wrong, and the remedy."""


@dataclass(frozen=True)
class Pair:
    """A photo and where its mask is."""

    key: str
    photo: Path
    mask: Path


@dataclass(frozen=True)
class Benchmark:
    """A set of photos with masks.

    Attributes:
        name: as the command names it.
        split: "val" or "train"; empty for a folder.
        names: of the classes, by their index in the masks; "background" first where the set has one.
        pairs: photos and masks, sorted by key; a key is one photo's.
        read: a pair's mask. Raises MaskError.
        sclip_names: several names for some of the classes, by index, as SCLIP (arXiv 2312.01597) asks for them.
    """

    name: str
    split: str
    names: tuple[str, ...]
    pairs: Sequence[Pair]
    read: Callable[[Pair], Mask]
    sclip_names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[str, Path] = {}
        for pair in self.pairs:
            if pair.key in seen:
                raise ValueError(
                    f"{seen[pair.key]} and {pair.photo}: two photos of one name, {pair.key!r}, in a set; rename one"
                )
            seen[pair.key] = pair.photo

    @property
    def background(self) -> bool:
        """Whether class 0 is the background."""
        return self.names[0] == "background"

    def load(self, pair: Pair) -> tuple[UInt8[ndarray, "H W 3"], Mask]:
        """A photo and its mask. Raises PhotoError or MaskError, naming the file."""
        photo, mask = open_photo(pair.photo), self.read(pair)
        if photo.shape[:2] != mask.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, photo.shape)]
            raise MaskError(f"{pair.mask}: {sizes[0]} pixels, but its photo {pair.photo} has {sizes[1]}; mend the pair")
        return photo, mask

    def stamp(self, pair: Pair) -> str | None:
        """`stamp_pair` of a photo and its mask as they are now; None where they cannot be read."""
        try:
            return stamp_pair(*self.load(pair))
        except Exception:  # who counts it says what is wrong
            return None


def stamp_pair(photo: UInt8[ndarray, "H W 3"], mask: Mask) -> str:
    """What tells a photo and its mask, as they were read, from any others: whatever files they came from."""
    digest = blake2b(digest_size=16)
    for array in (photo, mask):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def find(root: Path, *candidates: str) -> Path:
    """The first of these files or folders in `root` that exists. Raises ValueError, naming them, where none does."""
    for candidate in candidates:
        if (path := root / candidate).exists():
            return path
    raise ValueError(f"{root}: expected {' or '.join(candidates)} there; --root names the folder that holds it")


def read_keys(index: Path) -> list[str]:
    """The photos' names that a file lists, one a line, sorted. Raises ValueError for a path in place of a name."""
    try:
        keys = index.read_text("utf-8").split()
    except (OSError, ValueError) as error:
        raise ValueError(f"{index}: expected one photo's name a line, in UTF-8 ({error})") from error
    strange = [key for key in keys if Path(key).name != key]
    if not keys or strange:
        raise ValueError(f"{index}: expected one photo's name a line" + (f", not {strange[0]!r}" if strange else ""))
    return sorted(keys)


def match_stems(photos: Path, masks: Path) -> list[Pair]:
    """Photos and masks of the same stem in two folders; where one of them is missing, reading the pair says so."""
    for folder in (photos, masks):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; photos and masks are expected in {photos} and {masks}")
    images = _by_stem(photos, PHOTO_SUFFIXES)
    # mmsegmentation leaves its own versions beside the official ones.
    truths = {stem: path for stem, path in _by_stem(masks, (".png",)).items() if not stem.endswith("TrainIds")}
    if not images or not truths:
        raise ValueError(f"{photos if not images else masks}: no {'photos' if not images else 'PNGs'} in it")
    return [
        Pair(key, images.get(key, photos / f"{key}.jpg"), truths.get(key, masks / f"{key}.png"))
        for key in sorted(images.keys() | truths.keys())
    ]


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files by stem. Raises ValueError where two have one: whose mask, or which mask, would be a guess."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("._"):  # these macOS leaves beside files
            continue
        if (other := found.setdefault(path.stem, path)) is not path:
            raise ValueError(f"{other} and {path}: two files of one name in a set; rename or remove one")
    return found


def png_reader(meaning: Mapping[int, int]) -> Callable[[Pair], Mask]:
    """`Benchmark.read` for index PNGs; `meaning` as for `read_mask`."""
    return partial(_read_pair, meaning=meaning)


def _read_pair(pair: Pair, meaning: Mapping[int, int]) -> Mask:
    return read_mask(pair.mask, meaning)


def class_values(classes: int) -> dict[int, int]:
    """The meaning of masks whose values are the class indices, 255 ignored."""
    return {**{i: i for i in range(classes)}, IGNORED: IGNORED}


def read_mask(path: Path, meaning: Mapping[int, int]) -> Mask:
    """Read an index PNG.

    Args:
        path: 8 bits, greyscale or with a palette; the pixel values count, not the colours.
        meaning: the class index, or IGNORED, of each value that may occur.

    Raises:
        MaskError: missing or broken, or no PNG; over 200 megapixels; RGB, 16-bit, or grey of fewer bits than 8; or
            with a value that `meaning` lacks.
    """
    return translate(read_indices(path), meaning, str(path))


def read_indices(path: Path) -> UInt8[ndarray, "H W"]:
    """The values of a PNG's pixels, as its file has them. Raises MaskError."""
    try:
        data, header = _read_chunks(path)
        _check_header(path, *header)
        # Pillow's own class: PNG and nothing else, whatever the file says it is.
        with PngImageFile(io.BytesIO(data)) as image:
            return np.asarray(image)
    except MaskError:
        raise
    except FileNotFoundError:
        raise MaskError(f"{path}: no such mask; copy it there, or leave its photo out") from None
    except Exception as error:  # what is damaged makes Pillow raise nearly anything
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise MaskError(f"{path}: cannot be read ({why!s:.200}); copy or download it again") from error


def _read_chunks(path: Path) -> tuple[bytes, tuple[int, int, int, int]]:
    """A PNG with what its pixels need alone; and its width, height, bits of a value and colour type.

    Texts, profiles and times are left aside: what is in them cannot harm.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file")  # a pipe would be waited for
    kept = [PNG]
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            raise ValueError("not a PNG")
        left = MAX_BYTES
        while len(start := file.read(8)) == 8:
            (length,), kind = struct.unpack(">I", start[:4]), start[4:]
            if kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
                file.seek(length + 4, os.SEEK_CUR)
                continue
            if (left := left - length) < 0:
                raise ValueError(f"more than {MAX_BYTES} bytes of pixels")
            kept += [start, file.read(length + 4)]
            if kind == b"IEND":
                break
    data = b"".join(kept)
    return data, struct.unpack(">IIBB", data[16:26])


def _check_header(path: Path, width: int, height: int, bits: int, colours: int) -> None:
    """Raises MaskError for an image that is too large, or does not hold class indices."""
    if width * height > MAX_PIXELS:
        raise MaskError(f"{path}: {width}x{height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read")
    if colours not in (GREY, PALETTE):
        mode = {2: "RGB", 4: "LA", 6: "RGBA"}.get(colours, str(colours))
        raise MaskError(
            f"{path}: an image of mode {mode}; expected class indices (mode L or P): colours must be turned into the "
            "indices of the palette they come from"
        )
    if bits > 8:
        raise MaskError(f"{path}: a 16-bit mask; expected 8-bit class indices, 255 ignored: save it with 8 bits")
    if colours == GREY and bits < 8:
        raise MaskError(
            f"{path}: a grey mask of {bits} bit{'s' if bits > 1 else ''}, whose white may mean {2**bits - 1} or 255; "
            "expected 8-bit class indices, 255 ignored: save it with 8 bits, or with a palette"
        )


def translate(values: ndarray, meaning: Mapping[int, int], name: str) -> Mask:
    """Pixel values -> class indices. Raises MaskError for a value that `meaning` lacks; `name` is the mask's."""
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise MaskError(f"{name}: {values.ndim} axes of {values.dtype}; expected whole numbers, one a pixel")
    table = np.full(2**16, -1, np.int16)
    table[list(meaning)] = list(meaning.values())
    if values.dtype not in (np.uint8, np.uint16):  # what the table does not have takes its last row: no class either
        wide = values.astype(np.int64)
        found = table[np.where((wide >= 0) & (wide < len(table)), wide, len(table) - 1)]
    else:
        found = table[values]
    if (found < 0).any():
        strange = np.unique(values[found < 0])
        shown = ", ".join(map(str, strange[:5])) + (" ..." if len(strange) > 5 else "")
        raise MaskError(f"{name}: has the values {shown}, which are no class; expected {_ranges(meaning)}")
    return found.astype(np.uint8)


def _ranges(values: Mapping[int, int]) -> str:
    """{0, 1, 2, 255} -> "0 to 2, 255"."""
    numbers = np.array(sorted(values))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
