"""Segment four photos with the embedded model: python examples/demo.py [FOLDER], or `make demo`.

The photos are scikit-image's samples, in the public domain. For each this is the command
`segclip segment PHOTO --labels ... --out FOLDER`.
"""

import sys
from pathlib import Path

import skimage.data
from PIL import Image

from segclip.cli import main as segclip

LABELS = {
    "chelsea": ["cat", "dog", "car", "boat"],
    "coffee": ["cup", "spoon", "table"],
    "astronaut": ["woman", "flag", "rocket"],
    "rocket": ["rocket", "tower", "sky"],
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
    print("\nLook at:")
    for name in LABELS:
        print(f"  {(folder / f'{name}.overlay.png').resolve()}")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
