"""Files as people have them, for the tests of what `segclip prepare` reads."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image
from skimage.data import chelsea

from segclip.data.sources.open import Format, open_source
from segclip.data.sources.pairs import Pair

Members = list[tuple[str, bytes]]


def jpeg(seed: int = 0) -> bytes:
    """A small real photo: a part of a cat."""
    file = io.BytesIO()
    Image.fromarray(chelsea()[10 * seed : 10 * seed + 40, 100:160]).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_json(path: Path, value: Any) -> Path:
    return write(path, json.dumps(value))


def write_lines(path: Path, *records: Any) -> Path:
    return write(path, "\n".join(map(json.dumps, records)))


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, caption: str, seed: int = 0) -> Members:
    record = {"caption": caption, "url": f"https://example.org/{key}", "status": "success", "width": 60}
    return [(f"{key}.jpg", jpeg(seed)), (f"{key}.json", json.dumps(record).encode()), (f"{key}.txt", caption.encode())]


def read(path: Path, format: Format = "auto", photos: Path | None = None, split: str = "train") -> list[Pair]:
    return list(open_source(path, format, photos, split).pairs())


def captions(pairs: list[Pair]) -> list[tuple[str, ...]]:
    return [pair.captions for pair in pairs]


PEAK = """
import sys, tracemalloc
from pathlib import Path
from segclip.data.sources.open import open_source
tracemalloc.start()
count = sum(1 for _ in open_source(Path(sys.argv[1])).pairs())
print(count, tracemalloc.get_traced_memory()[1])
"""


def peak(path: Path) -> list[int]:
    """Number of pairs, and bytes that reading them takes at most; in a process of its own, where no type is checked."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]
