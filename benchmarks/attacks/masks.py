"""Damaged masks, classes and annotations: each is read as classes that there are, or refused."""

import contextlib
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from attacks.models import save_small
from attacks.mutate import mutate, mutate_png, mutate_value
from attacks.photos import encode, make_photo
from attacks.process import Fault, Refused, check_message, refusal
from segclip.cli import main
from segclip.evaluate.datasets import open_benchmark
from segclip.evaluate.datasets.benchmark import IGNORED

NAMES = ("background", "cat", "dog")
SIZE = (48, 64)
EVALUATED = 100  # every so many inputs, a set is evaluated
PHOTOS = 6  # of an evaluated set


def make_masks() -> dict[str, bytes]:
    """Valid masks, and files of other formats under a PNG's name."""
    numbers = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 500 % len(NAMES)).astype(np.uint8)
    numbers[:4] = IGNORED
    grey = Image.fromarray(numbers)
    coloured = Image.fromarray(numbers)
    coloured.putpalette(bytes(range(256)) * 3)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "mask", zip=True)
    few = Image.fromarray(numbers % 2)
    few.putpalette(bytes(6))
    return {
        "grey": encode(grey, "PNG"),
        "coloured": encode(coloured, "PNG"),
        "texts": encode(grey, "PNG", pnginfo=texts),
        "few": encode(few, "PNG", bits=1),
        "rgb": encode(grey.convert("RGB"), "PNG"),
        "16": encode(Image.fromarray(numbers.astype(np.uint16)), "PNG"),
        "gif": encode(grey, "GIF"),
        "tiff": encode(grey, "TIFF"),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n",
    }


class Masks:
    """Sets of photos with masks."""

    megabytes, seconds = 2000, 120.0

    def __init__(self, folder: Path) -> None:
        self.folder, self.masks, self.model = folder, make_masks(), save_small(folder / "model.safetensors")
        self.photo = encode(Image.fromarray(make_photo(0, SIZE)), "PNG")
        self.root = folder / "set"
        self.coco = self._make_coco()
        for number in (0, 1):
            self.attempt(random.Random(number), number)

    def attempt(self, generator: random.Random, number: int) -> bool:
        """A mask, a file of classes, COCO's annotations, or now and then a set that is evaluated."""
        shutil.rmtree(self.root, ignore_errors=True)
        if number % EVALUATED == 0:
            return self._evaluate(generator)
        way: Callable[[random.Random], bool] = generator.choice((self._mask,) * 6 + (self._classes, self._instances))
        return way(generator)

    def _draw(self, generator: random.Random) -> bytes:
        names = list(self.masks)
        data, other = (self.masks[generator.choice(names)] for _ in range(2))
        if data.startswith(b"\x89PNG") and generator.random() < 0.4:
            return mutate_png(data, other, generator)
        return mutate(data, other, generator) if generator.random() < 0.95 else data

    def _write_set(self, masks: list[bytes], classes: str | None = None) -> None:
        for folder in ("images", "masks"):
            (self.root / folder).mkdir(parents=True)
        for number, data in enumerate(masks):
            (self.root / f"images/{number}.png").write_bytes(self.photo)
            (self.root / f"masks/{number}.png").write_bytes(data)
        (self.root / "classes.json").write_text(classes or json.dumps({"classes": dict(enumerate(NAMES))}))

    def _mask(self, generator: random.Random) -> bool:
        self._write_set([self._draw(generator)])
        return self._read("folder")

    def _classes(self, generator: random.Random) -> bool:
        classes = {"classes": {str(i): name for i, name in enumerate(NAMES)}}
        text = json.dumps(mutate_value(classes, generator))
        if generator.random() < 0.3:
            text = mutate(text.encode(), b"{}[]", generator).decode("latin-1")
        self._write_set([self.masks["grey"]], text)
        return self._read("folder")

    def _make_coco(self) -> dict[str, Any]:
        height, width = SIZE
        crowd = {"size": [height, width], "counts": [0, 100, height * width - 100]}
        annotations = [
            {"id": 1, "image_id": 1, "category_id": 17, "segmentation": [[10.0, 0, 50, 0, 50, 20]], "area": 400},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": crowd, "area": 100, "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 18, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "area": 64},
        ]
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": height, "width": width} for n in (1, 2)]
        return {"images": images, "annotations": annotations}

    def _instances(self, generator: random.Random) -> bool:
        for number in (1, 2):
            photo = self.root / f"val2017/{number:012d}.jpg"
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(self.photo)
        file = self.root / "annotations/instances_val2017.json"
        file.parent.mkdir()
        file.write_text(json.dumps(mutate_value(self.coco, generator)))
        return self._read("coco-object")

    def _read(self, name: str) -> bool:
        """Every pair of a set, as `evaluate` reads it."""
        found = refusal(lambda: open_benchmark(name, self.root, "val"), self.root)
        if isinstance(found, Refused):
            return False
        taken = False
        for pair in found.pairs:
            read = refusal(lambda pair=pair: found.load(pair), self.root)
            if isinstance(read, Refused):
                continue
            photo, mask = read
            if mask.shape != photo.shape[:2] or not set(np.unique(mask)) <= {*range(len(found.names)), IGNORED}:
                raise Fault(f"a mask of {mask.shape} with {np.unique(mask)[:10]}")
            taken = True
        return taken

    def _evaluate(self, generator: random.Random) -> bool:
        """Of a set, each photo counts or is named, and nothing is NaN."""
        self._write_set([self.masks["grey"], *(self._draw(generator) for _ in range(PHOTOS - 1))])
        result, said = self.root / "result.json", io.StringIO()
        arguments = ["evaluate", "folder", "--root", str(self.root), "--model", str(self.model), "--skip-bad"]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main([*arguments, "--json", str(result)])
        if code not in (0, 1):
            raise Fault(f"evaluate gives exit code {code}: {said.getvalue()[-300:]}")
        found = json.loads(result.read_text("utf-8"))
        lines = result.with_name("result.photos.jsonl").read_text("utf-8").splitlines()
        counted = {line["photo"] for line in map(json.loads, lines) if "found" in line}
        if counted | found["left_out"].keys() != {str(number) for number in range(PHOTOS)} or "0" not in counted:
            raise Fault(f"counted {sorted(counted)}, left out {sorted(found['left_out'])}")
        for why in found["left_out"].values():
            check_message(why, self.root)
        if not math.isfinite(found["miou"]) or "NaN" in json.dumps(found):
            raise Fault("NaN in the result")
        return True
