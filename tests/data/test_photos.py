"""Photos of every kind become upright RGB; bad ones get an error that names them."""

import inspect
import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from helpers import GOLDEN
from helpers.pixels import DEVIATION, MEAN, normalise
from PIL import Image, features
from safetensors.numpy import load_file

from segclip.data import photos
from segclip.data.own_pictures import save_own_png
from segclip.data.photos import (
    PhotoError,
    decode_image,
    decode_photo,
    list_photos,
    open_photo,
    paper_size,
    photo_suffix,
    resize_photo,
)

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return skimage.data.chelsea()


def _ramp() -> np.ndarray:
    """uint8 (16,16): every grey level once."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 100)) + _chunk(b"IEND", b"")
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


def _odd_exif(orientation: int) -> bytes:
    """EXIF as some cameras write it: Make (0x10F) is a FLOAT, which Pillow reads, but cannot write anew."""
    make = struct.pack(">HHIf", 0x010F, 11, 1, 1.5)
    return b"MM\0*\0\0\0\x08\0\x02" + make + struct.pack(">HHIHH", ORIENTATION, 3, 1, orientation, 0) + bytes(4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_is_never_written_anew(kind: str) -> None:
    file = io.BytesIO()
    exif = _odd_exif(6) if kind == "PNG" else b"Exif\0\0" + _odd_exif(6)
    Image.new("RGB", (8, 4)).save(file, kind, exif=exif)
    turned = decode_image(file.getvalue(), "photo")
    assert turned.size == (4, 8) and open_photo(turned).shape == (8, 4, 3), "and never turned twice"


def test_an_odd_orientation_is_none(tmp_path: Path) -> None:
    for orientation in (0, 9, 65535):
        Image.new("RGB", (8, 4)).save(tmp_path / "p.jpg", exif=b"Exif\0\0" + _odd_exif(orientation))
        assert open_photo(tmp_path / "p.jpg").shape == (4, 8, 3)


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


TWO_MB = zlib.compress(bytes(2_000_000))


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize(
    "extra",
    [
        _chunk(b"zTXt", b"Comment\0\0" + TWO_MB),
        _chunk(b"iTXt", b"Comment\0\1\0\0\0" + TWO_MB),
        _chunk(b"iCCP", b"profile\0\0" + TWO_MB),
        _chunk(b"iCCP", b"profile\0\7no zlib"),
        _chunk(b"iCCP", b""),
        _chunk(b"sRGB", b""),
        _chunk(b"tEXt", b"Comment\0cat")[:-4] + b"crc?",
    ],
    ids=["text", "international text", "profile", "profile's method", "empty profile", "no intent", "check sum"],
)
def test_a_png_is_read_whatever_lies_beside_its_pixels(extra: bytes, place: str, cat: np.ndarray) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    Image.fromarray(cat).save(file, "PNG", exif=exif)
    at = 33 if place == "before the pixels" else len(file.getvalue()) - 12
    photo = file.getvalue()[:at] + extra + file.getvalue()[at:]
    np.testing.assert_array_equal(decode_photo(photo, "photo"), cat[::-1, ::-1])
    assert photo_suffix(photo, "photo") == "png"


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
    with pytest.raises(PhotoError, match="int is no photo; give a path, bytes"):
        inspect.unwrap(open_photo)(3)  # unwrapped: the tests' own type check would answer first


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_pipe, "a pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.symlink_to("gone.jpg"), "a link to a file that is gone"),
        (lambda path: None, "no such file"),
    ],
    ids=["pipe", "device", "links in a circle", "dead link", "gone"],
)
def test_what_is_no_file_neither_hangs_nor_stops(make: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    """In a folder it is tried as any photo, for its name says that it is one."""
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg")
    make(tmp_path / "p.jpg")
    with pytest.raises(PhotoError, match=rf"p\.jpg: .*{says}"):
        open_photo(tmp_path / "p.jpg")
    there = [tmp_path / "p.jpg"] if os.path.lexists(tmp_path / "p.jpg") else []
    assert list_photos([tmp_path]) == [tmp_path / "a.jpg", *there]


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x" * 251 + ".jpg"])
def test_a_name_longer_than_names_can_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"cannot be read|no such file"):
        open_photo(tmp_path / name)
    assert list_photos([tmp_path / name]) == [tmp_path / name]


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xff")
    folder.mkdir()
    Image.new("RGB", (8, 4)).save(folder / os.fsdecode(b"p\xe9.png"))
    (photo,) = list_photos([folder])
    assert open_photo(photo).shape == (4, 8, 3)
    photo.write_bytes(b"no photo")
    with pytest.raises(PhotoError):
        open_photo(photo)


def test_no_format_that_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS under a PNG's name, for which Pillow would start Ghostscript."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: started.append(args))
    (tmp_path / "p.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 4\n%%EndComments\n(x) run\n%%EOF\n"
    )
    assert Image.open(tmp_path / "p.png").format == "EPS"
    with pytest.raises(PhotoError, match="not an image of a known format"):
        open_photo(tmp_path / "p.png")
    assert not started


def test_whatever_pillow_raises_names_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 4)).save(tmp_path / "p.png")
    for method in ("load", "convert"):
        with monkeypatch.context() as patch, pytest.raises(PhotoError, match=r"p\.png: .*surprise"):
            patch.setattr(Image.Image, "convert", lambda *args, **options: {}["surprise"])
            if method == "load":
                patch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *args: {}["surprise"])
            open_photo(tmp_path / "p.png")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jfif", "JPEG"), (".jpe", "JPEG"), (".mpo", "MPO"), (".avif", "AVIF"), (".heic", "HEIF"), (".heif", "HEIF")],
)
def test_a_photo_of_each_suffix_is_read(suffix: str, kind: str, cat: np.ndarray, tmp_path: Path) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    options = {"save_all": True, "append_images": [Image.fromarray(cat)]} if kind == "MPO" else {}
    Image.fromarray(cat).save(tmp_path / f"p{suffix}", kind, **options)
    (path,) = list_photos([tmp_path])
    assert np.abs(open_photo(path).astype(int) - cat).mean() < 10


def test_heic_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    photos._formats.cache_clear()
    try:
        with pytest.raises(PhotoError, match=r"a\.heic: HEIC photos .* pip install pillow-heif"):
            decode_photo(b"\0\0\0\x18ftypheic" + bytes(100), "a.heic")
    finally:
        photos._formats.cache_clear()


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
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 0), np.uint8),
        np.zeros((0, 4, 3), "u1"),
    ],
    ids=["float", "two channels", "one axis", "no column", "empty"],
)
def test_arrays_of_another_kind(array: np.ndarray) -> None:
    with pytest.raises(PhotoError, match=r"expected uint8, .* \(H,W\), RGB \(H,W,3\) or RGBA"):
        open_photo(array)


def test_arrays_of_grey_and_of_transparent_pixels_and_bytes(cat: np.ndarray, tmp_path: Path) -> None:
    grey = cat[..., 1]
    np.testing.assert_array_equal(open_photo(grey), np.repeat(grey[..., None], 3, axis=2))
    clear = np.dstack([cat, np.full(grey.shape, 255, np.uint8)])
    clear[:10, :, 3] = 0
    photo = open_photo(clear)
    assert (photo[:10] == 255).all(), "nothing is white"
    np.testing.assert_array_equal(photo[10:], cat[10:])
    file = io.BytesIO()
    Image.fromarray(cat).save(file, "PNG")
    np.testing.assert_array_equal(open_photo(file.getvalue()), cat)
    with pytest.raises(PhotoError, match=r"photo of 5 bytes: not an image"):
        open_photo(b"photo")
    with pytest.raises(PhotoError, match=r"photo of 0 bytes: the file is empty"):
        open_photo(b"")


def test_list_photos(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sub.jpg").mkdir()
    single = tmp_path / "notes.txt"
    assert list_photos([single, tmp_path]) == [single, tmp_path / "a.png", tmp_path / "b.JPG"]
    with pytest.raises(ValueError, match=r"sub\.jpg: no photos.*\.jpeg"):
        list_photos([str(tmp_path / "sub.jpg")])


def test_what_is_left_out_of_a_folder_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "._a.jpg", "b.cr2", *(f"{i}.txt" for i in range(9))):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    save_own_png(Image.new("L", (8, 4)), tmp_path / "a.mask.png")
    Image.new("L", (8, 4)).save(tmp_path / "b.mask.png")
    assert list_photos([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "b.mask.png"]
    assert [line.split("left out, ")[1] for line in caplog.messages] == [
        "notes of macOS: ._a.jpg",
        "other kinds of files: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, 6.txt, 7.txt and 2 more",
        "written by segclip: a.mask.png",
        "subfolders: sub",
    ]
    for name in ("a.jpg", "b.mask.png"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"no photos in this folder.*notes of macOS: \._a\.jpg"):
        list_photos([tmp_path])


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
