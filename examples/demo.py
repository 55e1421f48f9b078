"""Segment everyday photos with the embedded model: python examples/demo.py [FOLDER], or `make demo`.

Each photo is segmented with the command `segclip segment PHOTO --labels ... --out FOLDER`. `FOLDER/demo.jpg` shows them
all, with what was found and what was not; `make picture` puts it into the README.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from segclip.cli import main as segclip
from segclip.visualize import palette


@dataclass(frozen=True)
class Photo:
    """A photo inside scikit-image, which segclip needs anyway, and what somebody would ask of it.

    Attributes:
        file: its name in skimage/data.
        labels: as a person would type them; not all of them are in the photo.
        author: who took it.
        licence: "CC0" or "public domain", according to scikit-image's documentation of it.
        source: where scikit-image has it from.
        sha256: of the file.
    """

    file: str
    labels: tuple[str, ...]
    author: str
    licence: str
    source: str
    sha256: str

    @property
    def name(self) -> str:
        return Path(self.file).stem


# Chosen for their licence and their variety, not for their results. docs/faq.md has the same table.
PHOTOS = (
    Photo(
        "chelsea.png",
        ("cat", "dog", "car", "boat"),
        "Stefan van der Walt",
        "CC0",
        "scikit-image",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    Photo(
        "coffee.png",
        ("cup", "saucer", "spoon", "table"),
        "Rachel Michetti",
        "CC0",
        "scikit-image",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    Photo(
        "astronaut.png",
        ("person", "flag", "helmet", "space shuttle"),
        "NASA",
        "public domain",
        "https://flic.kr/p/r9qvLn",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photo(
        "rocket.jpg",
        ("rocket", "tower", "sky"),
        "SpaceX",
        "public domain",
        "https://www.flickr.com/photos/spacexphotos/16511594820/in/photostream/",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
    Photo(
        "camera.png",
        ("man", "camera", "grass", "building", "sky"),
        "Lav Varshney",
        "CC0",
        "scikit-image",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    ),
    Photo(
        "brick.png",
        ("brick", "grass"),
        "CC0Textures",
        "CC0",
        "https://cc0textures.com/view.php?tex=Bricks25",
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    ),
    Photo(
        "hubble_deep_field.jpg",
        ("galaxy", "sky"),
        "NASA",
        "public domain",
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
)

COLUMNS = 4  # of the sheet
WIDTH, HEIGHT = 512, 340  # of a picture on it, at most
GAP = 24
TEXT = 34  # pixels; the README shows the sheet at less than half its size
LINE = 44


def run(folder: Path, photos: Sequence[Photo]) -> int:
    """Segment the photos, and draw the sheet.

    Returns:
        The worst exit code of `segclip segment`; the sheet is drawn only if that is 0.
    """
    originals = folder / "photos"
    originals.mkdir(parents=True, exist_ok=True)
    codes = []
    for photo in photos:
        with as_file(files("skimage.data") / photo.file) as file:
            original = shutil.copyfile(file, originals / photo.file)
        codes.append(segclip(["segment", str(original), "--labels", *photo.labels, "--out", str(folder)]))
    if not max(codes):
        picture = folder / "demo.jpg"
        draw_sheet(folder, photos).save(picture, quality=86, optimize=True)
        overlays = [folder / f"{photo.name}.overlay.png" for photo in photos]
        print("\nLook at:", *(f"  {path.resolve()}" for path in (picture, *overlays)), *credit_lines(photos), sep="\n")
    return max(codes)


def draw_sheet(folder: Path, photos: Sequence[Photo]) -> Image.Image:
    """What `segclip segment` wrote into the folder, a cell for each photo, and whose they are in a last one."""
    cells = [draw_cell(folder, photo) for photo in photos] + [draw_credits(photos)]
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    sheet = Image.new("RGB", (len(rows[0]) * (WIDTH + GAP) - GAP, sum(heights) - GAP), "white")
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * (WIDTH + GAP), sum(heights[:number])))
    return sheet


def draw_cell(folder: Path, photo: Photo) -> Image.Image:
    """The overlay, without its own legend, over a larger one."""
    record = json.loads((folder / f"{photo.name}.json").read_text())
    with Image.open(folder / f"{photo.name}.overlay.png") as overlay:
        picture = ImageOps.contain(overlay.crop((0, 0, record["width"], record["height"])), (WIDTH, HEIGHT))
    lines = captions(record)
    cell = Image.new("RGB", (WIDTH, HEIGHT + GAP // 3 + len(lines) * LINE), "white")
    cell.paste(picture, (0, HEIGHT - picture.height))
    draw = ImageDraw.Draw(cell)
    colours = palette(1 + len(lines))
    for i, (found, text) in enumerate(lines):
        top = HEIGHT + GAP // 3 + i * LINE + (LINE - TEXT) // 2
        if found:
            draw.rectangle((0, top, TEXT, top + TEXT), fill=tuple(colours[1 + i].tolist()), outline="grey")
        draw.text((TEXT + 12, top + TEXT // 2), text, fill="black", font=ImageFont.load_default(TEXT), anchor="lm")
    return cell


def captions(record: dict) -> list[tuple[bool, str]]:
    """Of each label in a `STEM.json`, in the order given: whether it was found, and its share of the photo in words."""
    shares = {found["index"]: found["share"] for found in record["found"]}
    return [
        (True, f"{label}  {shares[i]:.1%}") if i in shares else (False, f"{label}: not found")
        for i, label in enumerate(record["labels"], 1)
    ]


def draw_credits(photos: Sequence[Photo]) -> Image.Image:
    cell = Image.new("RGB", (WIDTH, HEIGHT), "white")
    text = "\n".join(credit_lines(photos))
    ImageDraw.Draw(cell).multiline_text((0, 0), text, fill="black", font=ImageFont.load_default(25), spacing=12)
    return cell


def credit_lines(photos: Sequence[Photo]) -> list[str]:
    return ["The photos, all in scikit-image:", *(f"{p.name}: {p.author}, {p.licence}" for p in photos)]


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"), PHOTOS))
