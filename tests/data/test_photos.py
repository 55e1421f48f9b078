"""Photos of every kind become upright RGB; bad ones get an error that names them."""

import inspect
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from helpers import GOLDEN
from helpers.pixels import DEVIATION, MEAN, normalise
from PIL import Image
from safetensors.numpy import load_file

from segclip.data.photos import PhotoError, list_photos, open_photo, paper_size, resize_photo

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return skimage.data.chelsea()


def _ramp() -> np.ndarray:
    """uint8 (16,16): every grey level once."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_paths_pil_images_and_arrays_agree(cat: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.fromarray(cat).save(path)
    for source in (path, str(path), Image.fromarray(cat), cat, cat[:, ::-1].copy()[:, ::-1]):
        photo = open_photo(source)
        assert photo.dtype == np.uint8 and photo.flags.c_contiguous
        np.testing.assert_array_equal(photo, cat)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_exif_rotation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = np.zeros((24, 48, 3), np.uint8)
    upright[:12, :24] = (255, 0, 0)
    upright[12:, :24] = (0, 255, 0)
    upright[:12, 24:] = (0, 0, 255)
    stored = {  # how a camera held this way stores it (EXIF 2.32, tag 274)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    photo = open_photo(path)
    assert photo.shape == upright.shape
    assert np.abs(photo.astype(int) - upright)[4:8, 4:20].max() < 40  # JPEG is not exact
    assert np.abs(photo.astype(int) - upright).mean() < 12


def test_16_bit_photos_are_rotated_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.arange(8, dtype=np.uint16).reshape(2, 4) * 8224
    Image.fromarray(stored).save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(open_photo(tmp_path / "p.png")[..., 0], np.rot90(stored, -1) // 257)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow says so too
def test_broken_exif_does_not_refuse_the_pixels(cat: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(cat).save(tmp_path / "p.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    assert open_photo(tmp_path / "p.jpg").shape == cat.shape


def test_cmyk_jpeg(cat: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(cat).convert("CMYK").save(tmp_path / "p.jpg", quality=95)
    photo = open_photo(tmp_path / "p.jpg")
    assert photo.shape == cat.shape
    assert np.abs(photo.astype(int) - cat).mean() < 6


@pytest.mark.parametrize("kind", ["png", "tif", "pgm", "big-endian"])
def test_16_bit_is_scaled_not_clipped(kind: str, tmp_path: Path) -> None:
    values = _ramp().astype(np.uint16) * 257
    path = tmp_path / f"p.{'tif' if kind == 'big-endian' else kind}"
    image = Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes()) if kind == "big-endian" else None
    (image or Image.fromarray(values)).save(path)
    np.testing.assert_array_equal(open_photo(path), np.repeat(_ramp()[..., None], 3, axis=2))


def test_a_dark_16_bit_photo_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "p.png")
    assert open_photo(tmp_path / "p.png").max() == 1


@pytest.mark.parametrize(
    "values",
    [
        _ramp().astype(np.int32),
        _ramp().astype(np.int32) * 257,
        _ramp().astype(np.float32),
        _ramp().astype(np.float32) / 255,
        _ramp().astype(np.float32) * 1000 - 5000,
        _ramp().astype(np.int32) * 100_000,
    ],
    ids=["I8", "I16", "F255", "F1", "Frange", "I32"],
)
def test_32_bit_photos(values: np.ndarray) -> None:
    photo = open_photo(Image.fromarray(values))
    np.testing.assert_array_equal(photo, np.repeat(_ramp()[..., None], 3, axis=2))


def test_float_photo_with_nan_and_constant_photo() -> None:
    assert (open_photo(Image.fromarray(np.full((2, 2), np.nan, np.float32))) == 0).all()
    values = np.array([[np.nan, 0.0], [1.0, np.inf]], np.float32)
    assert open_photo(Image.fromarray(values))[..., 0].tolist() == [[0, 0], [255, 0]]
    assert (open_photo(Image.fromarray(np.full((2, 2), -3.0, np.float32))) == 0).all()


def test_palette_and_grey(cat: np.ndarray, tmp_path: Path) -> None:
    palette = Image.fromarray(cat).quantize(64)
    for name in ("p.png", "p.gif"):
        palette.save(tmp_path / name)
        np.testing.assert_array_equal(open_photo(tmp_path / name), np.asarray(palette.convert("RGB")))
    for mode in ("L", "1"):
        grey = Image.fromarray(cat).convert(mode)
        photo = open_photo(grey)
        np.testing.assert_array_equal(photo[..., 0], np.asarray(grey.convert("L")))
        assert (photo == photo[..., :1]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    colours = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    colours.putpixel((1, 0), (0, 0, 0, 0))
    colours.putpixel((2, 0), (0, 0, 0, 128))
    via = {"PA": "P", "La": "LA"}.get(mode)
    if mode == "PA":
        image = Image.new("PA", (3, 1))
        image.putpalette([0, 0, 0] * 256)
        image.putalpha(colours.getchannel("A"))
    else:
        image = (colours.convert(via) if via else colours).convert(mode)
    np.testing.assert_allclose(open_photo(image)[0, :, 0].astype(int), [0, 255, 127], atol=1)


def test_transparent_palette_index_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=1)
    assert open_photo(tmp_path / "p.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_thin_photos(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", (size[1], size[0]), (1, 2, 3)).save(tmp_path / "p.png")
    photo = open_photo(tmp_path / "p.png")
    assert photo.shape == (*size, 3)
    assert resize_photo(photo, paper_size(*size, 224)).size > 0


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"not a photo at all" * 9, "not an image"), (b"\xff\xd8\xff\xe0", "not an image|broken|damaged")],
    ids=["zero bytes", "text", "only a magic number"],
)
def test_files_that_are_no_photo(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=says) as caught:
        open_photo(path)
    assert "holiday.jpg" in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files(kind: str, share: float, cat: np.ndarray, tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(cat).save(whole, kind)
    path = tmp_path / "holiday.img"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    with pytest.raises(PhotoError, match=r"holiday\.img: (truncated|not an image|broken)"):
        open_photo(path)


def test_a_truncated_photo_given_as_pil_image(cat: np.ndarray, tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(cat).save(whole, "JPEG")
    with pytest.raises(PhotoError, match="truncated"):
        open_photo(Image.open(io.BytesIO(whole.getvalue()[:5000])))


def test_missing_file_folder_and_foreign_types(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"nowhere\.jpg: no such file"):
        open_photo(tmp_path / "nowhere.jpg")
    with pytest.raises(PhotoError, match="folder"):
        open_photo(tmp_path)
    with pytest.raises(PhotoError, match="bytes is no photo"):
        inspect.unwrap(open_photo)(b"\xff\xd8")  # unwrapped: the tests' own type check would answer first


def test_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_of_size(20_001, 10_000))
    with pytest.raises(PhotoError, match=r"bomb\.png: 20001x10000 is 200 megapixels"):
        open_photo(path)


def test_below_the_limit_pillows_own_does_not_interfere(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(_png_of_size(19_999, 10_000))  # Pillow alone refuses this size
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(), pytest.raises(PhotoError, match=r"large\.png: truncated"):
        warnings.simplefilter("error")
        open_photo(path)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), "u1"),
    ],
    ids=["float", "grey", "alpha", "empty"],
)
def test_arrays_of_another_kind(array: np.ndarray) -> None:
    with pytest.raises(PhotoError, match="expected RGB uint8"):
        open_photo(array)


def test_list_photos(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sub.jpg").mkdir()
    single = tmp_path / "notes.txt"
    assert list_photos([single, tmp_path]) == [single, tmp_path / "a.png", tmp_path / "b.JPG"]
    with pytest.raises(ValueError, match=r"sub\.jpg: no photos.*\.jpeg"):
        list_photos([str(tmp_path / "sub.jpg")])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 451), (96, 144)), ((451, 300), (144, 96)), ((100, 10_000), (20, 2048)), ((1, 10_000), (1, 2048))],
)
def test_paper_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert paper_size(*size, 96) == expected


def test_resize_equals_the_authors(cat: np.ndarray) -> None:
    golden = load_file(GOLDEN / "tiny.photo.safetensors")["photo_resized"]
    np.testing.assert_array_equal(resize_photo(cat, paper_size(300, 451, 96)), golden)
    assert resize_photo(cat, (300, 451)).shape == cat.shape


def test_normalise(cat: np.ndarray) -> None:
    pixels = normalise(cat)
    assert pixels.shape == (3, 300, 451) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    expected = (cat[17, 42] / 255 - np.array(MEAN)) / np.array(DEVIATION)
    np.testing.assert_allclose(pixels[:, 17, 42], expected, atol=1e-6)
    batch = torch.from_numpy(np.stack([cat, cat[::-1]]))
    torch.testing.assert_close(normalise(batch)[0], pixels)
    with pytest.raises(ValueError, match="expected uint8"):
        normalise(cat.astype(np.float32))
