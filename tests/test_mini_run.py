"""runs/mini.sh: what it asks for, and how it joins folders of pairs."""

import json
import subprocess
import sys
from pathlib import Path

from helpers import ROOT
from PIL import Image

from segclip.data.sources.open import open_source


def write_pairs(folder: Path, caption: str, image: str = "a.png") -> Path:
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "pairs.jsonl").write_text(json.dumps({"image": image, "captions": [caption]}) + "\n")
    return folder


def join(*folders: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, ROOT / "runs/join_pairs.py", *folders]
    return subprocess.run(script, capture_output=True, text=True)


def test_without_arguments_it_says_how_it_is_used() -> None:
    result = subprocess.run(["bash", ROOT / "runs/mini.sh"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("usage: bash runs/mini.sh PAIRS [PAIRS ...] RUN")


def test_joined_folders_are_one_source_and_joining_again_changes_nothing(tmp_path: Path) -> None:
    """Photos of the same name in two folders stay two; the source has the same fingerprint, so that prepare goes on."""
    folders = [write_pairs(tmp_path / caption, caption) for caption in ("cat", "dog")]
    out = tmp_path / "run" / "pairs"
    fingerprints = []
    for _ in range(2):
        assert join(*folders, out).returncode == 0
        source = open_source(out / "pairs.jsonl")
        pairs = list(source.pairs())
        assert [(pair.name, pair.captions) for pair in pairs] == [("0/a.png", ("cat",)), ("1/a.png", ("dog",))]
        assert all(pair.photo and pair.photo.read_bytes() == (folders[0] / "a.png").read_bytes() for pair in pairs)
        fingerprints.append(source.fingerprint())
    assert fingerprints[0] == fingerprints[1]


def test_a_photo_outside_its_folder_is_refused_with_its_line(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", "cat", "../a.png")
    result = join(folder, tmp_path / "out")
    assert result.returncode == 1 and f"{folder / 'pairs.jsonl'}, line 1: photo '../a.png' leaves" in result.stderr
    assert not (tmp_path / "out").exists()
