"""Damaged photos: one by one through the package's reader, and folders of them beside good ones."""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, features

from attacks.models import save_small
from attacks.mutate import mutate, mutate_png, mutate_segments, mutate_tiff
from attacks.process import Fault, Refused, check_message, refusal
from segclip.cli import main
from segclip.data.photos import decode_photo, open_photo, photo_suffix
from segclip.data.prepare import Chunk, Settings, Work, prepare
from segclip.data.shard_writer import Packed
from segclip.data.shards import Shards
from segclip.data.sources.open import open_source

SIZE = (72, 96)  # of a seed; prepare leaves out smaller ones than 64
BESIDE, DAMAGED = 4, 20  # photos of a folder


def make_photo(number: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """RGB: waves, with some noise."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(rows / (3 + k + number % 5) + k) * np.cos(columns / (4 + k)) for k in range(3)]
    noise = np.random.default_rng(number).normal(0, 10, (*size, 3))
    return np.clip(127 + 100 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """An image's file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def make_seeds() -> dict[str, bytes]:
    """Valid photos of every format and kind that is read, by name."""
    image, second = (Image.fromarray(make_photo(n)) for n in range(2))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "waves")
    texts.add_itxt("Comment", "Wellen " * 20, zip=True)
    grey16 = Image.fromarray((make_photo(2)[..., 0].astype(np.uint16) << 8) + 7)
    alpha = image.copy()
    alpha.putalpha(second.convert("L"))
    seeds = {
        "plain.jpg": encode(image, "JPEG"),
        "progressive.jpg": encode(image, "JPEG", progressive=True, icc_profile=profile, comment=b"waves"),
        "grey.jpg": encode(image.convert("L"), "JPEG"),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "two.mpo": encode(image, "MPO", save_all=True, append_images=[second]),
        "plain.png": encode(image, "PNG"),
        "16.png": encode(grey16, "PNG"),
        "palette.png": encode(image.quantize(64), "PNG"),
        "see-through.png": encode(image.quantize(64), "PNG", transparency=3),
        "1.png": encode(image.convert("1"), "PNG"),
        "alpha.png": encode(alpha, "PNG"),
        "grey-alpha.png": encode(alpha.convert("LA"), "PNG"),
        "texts.png": encode(image, "PNG", pnginfo=texts, icc_profile=profile, dpi=(72, 72)),
        "moving.png": encode(image, "PNG", save_all=True, append_images=[second]),
        "plain.gif": encode(image, "GIF"),
        "moving.gif": encode(image, "GIF", save_all=True, append_images=[second], transparency=0),
        "plain.bmp": encode(image, "BMP"),
        "palette.bmp": encode(image.quantize(16), "BMP"),
        "plain.tif": encode(image, "TIFF"),
        "packed.tif": encode(image, "TIFF", compression="tiff_lzw"),
        "deflated.tif": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(image, "TIFF", compression="jpeg"),
        "float.tif": encode(Image.fromarray(make_photo(3)[..., 0].astype(np.float32)), "TIFF"),
        "16.tif": encode(grey16, "TIFF"),
        "cmyk.tif": encode(image.convert("CMYK"), "TIFF"),
        "fax.tif": encode(image.convert("1"), "TIFF", compression="group4"),
        "plain.ppm": encode(image, "PPM"),
        "16.pgm": encode(grey16, "PPM"),
        "plain.webp": encode(image, "WEBP"),
        "exact.webp": encode(alpha, "WEBP", lossless=True, icc_profile=profile),
        "moving.webp": encode(image, "WEBP", save_all=True, append_images=[second]),
    }
    if features.check("avif"):
        seeds["plain.avif"] = encode(image, "AVIF", speed=10)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x112], exif[0x10F], exif[0x110] = turn, "Maker", "Model"
        seeds[f"turned-{turn}.jpg"] = encode(image, "JPEG", exif=exif)
        if turn % 3 == 0:
            seeds[f"turned-{turn}.png"] = encode(image, "PNG", exif=exif)
            seeds[f"turned-{turn}.webp"] = encode(image, "WEBP", exif=exif)
    return seeds


class Mutants:
    """Makes damaged photos."""

    def __init__(self) -> None:
        self.seeds = make_seeds()
        self.names = list(self.seeds)

    def draw(self, generator: random.Random) -> tuple[str, bytes]:
        """A name and a content."""
        name = generator.choice(self.names)
        data, other = self.seeds[name], self.seeds[generator.choice(self.names)]
        way = generator.random()
        if name.endswith("png") and way < 0.4:
            return name, mutate_png(data, other, generator)
        if way < 0.3 and (changed := mutate_tiff(data, generator)) != data:
            return name, changed
        if way < 0.45 and (changed := mutate_segments(data, generator)) != data:
            return name, changed
        return name, mutate(data, other, generator)


class Photos:
    """A damaged photo is read, or refused by a PhotoError that names it."""

    # 200 megapixels, which is the most that is read, are 800 MB as Pillow has them; with transparency it has them
    # four times.
    megabytes, seconds = 4500, 60.0

    def __init__(self, folder: Path) -> None:
        self.folder, self.mutants = folder, Mutants()
        for name, data in self.mutants.seeds.items():
            decode_photo(data, name)

    def attempt(self, generator: random.Random, number: int) -> bool:
        """Through a file, or through bytes as the sources have them."""
        name, data = self.mutants.draw(generator)
        if number % 2:
            path = self.folder / name
            path.write_bytes(data)
            found = refusal(lambda: open_photo(path), path)
        else:
            found = refusal(lambda: decode_photo(data, name))
        if isinstance(found, Refused):
            if name not in found.message:
                raise Fault(f"does not name the photo: {found.message[:200]!r}")
            return False
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or 0 in found.shape:
            raise Fault(f"a photo of {found.dtype}, {found.shape}")
        photo_suffix(data, name)  # prepare asks for it after it has read the photo
        return True


class Folders:
    """Of a folder of damaged photos beside good ones, every good one comes out, and each other one too, or is named."""

    megabytes, seconds = 5000, 300.0

    def __init__(self, folder: Path) -> None:
        self.folder, self.mutants, self.model = folder, Mutants(), save_small(folder / "model.safetensors")
        self.doors: list[Callable[[Path, Path, set[str]], None]] = [self._prepare, self._segment, self._annotate]
        for number in range(len(self.doors)):  # libraries start processes when they are first imported
            self.attempt(random.Random(number), number)

    def attempt(self, generator: random.Random, number: int) -> bool:
        """A folder through one of the three commands."""
        source, out = self.folder / "photos", self.folder / "out"
        for old in (source, out):
            shutil.rmtree(old, ignore_errors=True)
        source.mkdir()
        for i in range(BESIDE):
            (source / f"good-{i}.png").write_bytes(encode(Image.fromarray(make_photo(i)), "PNG"))
        for i in range(DAMAGED):
            name, data = self.mutants.draw(generator)
            (source / f"bad-{i:02d}{Path(name).suffix}").write_bytes(data)
        self.doors[number % len(self.doors)](source, out, {path.name for path in source.iterdir()})
        return True

    def _prepare(self, source: Path, out: Path, names: set[str]) -> None:
        lines = [json.dumps({"image": name, "caption": name}) for name in sorted(names)]
        (source / "pairs.jsonl").write_text("\n".join(lines))
        index = prepare(open_source(source), out, Settings(superpixels="opencv"), max_bad=1.0, map_chunks=serially)
        shards = Shards(out)
        samples = [shards[i] for i in range(len(shards))]
        for sample in samples:
            sample.image()
            sample.superpixels()
        report = [json.loads(line) for line in (out / "report.jsonl").read_text("utf-8").splitlines()]
        left_out = {line["photo"]: line["why"] for line in report if line["kind"] != "duplicate"}
        for why in left_out.values():
            check_message(why)
        if index.samples + sum(index.left_out.values()) != len(names):
            raise Fault(f"prepare counts {index.samples} and {index.left_out} of {len(names)}")
        _check_all({sample.record["photo"] for sample in samples}, set(left_out), names)

    def _segment(self, source: Path, out: Path, names: set[str]) -> None:
        said = self._command("segment", source, out)
        done = {name for name in names if (out / f"{Path(name).stem}.mask.png").exists()}
        for name in done:
            _check_finite(json.loads((out / f"{Path(name).stem}.json").read_text("utf-8")), name)
        _check_all(done, {name for name in names if name in said}, names)

    def _annotate(self, source: Path, out: Path, names: set[str]) -> None:
        said = self._command("annotate", source, out)
        found = json.loads((out / "coco.json").read_text("utf-8"))
        _check_finite(found, "coco.json")
        _check_all({image["file_name"] for image in found["images"]}, {name for name in names if name in said}, names)

    def _command(self, name: str, source: Path, out: Path) -> str:
        """What a command says."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = main([name, str(source), "--labels", "cat,dog", "--out", str(out), "--model", str(self.model)])
        if code not in (0, 1):
            raise Fault(f"{name} gives exit code {code}: {said.getvalue()[-300:]}")
        for line in said.getvalue().splitlines():
            check_message(line or "-", source, out)
        return said.getvalue()


def _check_all(done: set[str], named: set[str], names: set[str]) -> None:
    if lost := names - done - named:
        raise Fault(f"neither in the result nor named: {', '.join(sorted(lost))}")
    if lost := {name for name in names if name.startswith("good")} - done:
        raise Fault(f"good photos did not come out: {', '.join(sorted(lost))}")


def _check_finite(value: object, name: str) -> None:
    if "NaN" in (text := json.dumps(value)) or "Infinity" in text:
        raise Fault(f"NaN in {name}")


def serially(work: Work, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Packed]]]:
    """The work of `prepare` in this process, which is watched."""
    for chunk in chunks:
        yield chunk, work(chunk)
