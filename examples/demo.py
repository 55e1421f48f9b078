"""Segment four photos with the embedded model: python examples/demo.py [FOLDER], or `make demo`.

The photos are scikit-image's samples, in the public domain. Each is segmented with the command
`segclip segment PHOTO --labels ... --out FOLDER`. `FOLDER/demo.jpg` shows them together; it is the README's picture.
"""

import sys
from pathlib import Path

import skimage.data
from PIL import Image

from segclip.cli import main as segclip

LABELS = {
    "chelsea": ["cat", "dog", "car", "boat"],
    "coffee": ["cup", "table"],
    "astronaut": ["person", "flag", "wall"],
    "rocket": ["rocket", "sky"],
}


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    codes = []
    for name, labels in LABELS.items():
        photo = photos / f"{name}.png"
        Image.fromarray(getattr(skimage.data, name)()).save(photo)
        codes.append(segclip(["segment", str(photo), "--labels", *labels, "--out", str(folder)]))
    overlays = [folder / f"{name}.overlay.png" for name in LABELS]
    sheet = folder / "demo.jpg"
    side_by_side(overlays).save(sheet, quality=88)
    print("\nLook at:", *(f"  {path.resolve()}" for path in (*overlays, sheet)), sep="\n")
    return max(codes)


def side_by_side(files: list[Path], height: int = 360) -> Image.Image:
    images = [Image.open(file) for file in files]
    images = [image.resize((round(image.width * height / image.height), height)) for image in images]
    sheet = Image.new("RGB", (sum(image.width + 8 for image in images) - 8, height), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + 8
    return sheet


if __name__ == "__main__":
    sys.exit(main())
