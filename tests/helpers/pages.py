"""What pages show: fenced blocks, by language, and the commands in them.

`sh`: commands that a test runs, in order. `bash`: commands that need a network, hardware or data that a test has not,
or that another test runs at length; a test reads their options. `python`: run, in order with the commands. `py`: code
that needs what a test has not; a test compiles it.
"""

import json
import re
import shlex
from pathlib import Path

import skimage.data
import torch
from PIL import Image

from helpers.benchmark_files import write_folder
from segclip.config import CLIP_VOCABULARY


def fenced(page: str) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def blocks(language: str, page: str) -> list[str]:
    return [text for name, text in fenced(page) if name == language]


def commands(block: str) -> list[list[str]]:
    """The words of each command; a line that ends with a backslash goes on."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def write_inputs(folder: Path, weights: Path) -> Path:
    """What the pages' commands expect to find: photos, captions, masks, and a file of the authors' weights."""
    cat = Image.fromarray(skimage.data.chelsea())
    cat.save(folder / "photo.jpg")
    pairs = [{"image": f"{number}.jpg", "captions": [f"cat number {number}", "a cat"]} for number in (1, 2)]
    for name in ("photos", "pairs"):
        (folder / name).mkdir()
        for number in (1, 2):
            cat.crop((10 * number, 0, 300, 300)).save(folder / name / f"{number}.jpg")
    (folder / "pairs" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_folder(folder / "set", (0, 1), (0, 2, 255))
    state = torch.load(weights, weights_only=True)
    width = state["clip.token_embedding.weight"].shape[1]
    state["clip.token_embedding.weight"] = torch.randn(CLIP_VOCABULARY, width, dtype=torch.float16)
    torch.save(state, folder / "segclip.bin")
    return folder
