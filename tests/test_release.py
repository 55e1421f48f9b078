"""What is published: the wheel holds all that is needed and nothing that is not, and the papers around it agree."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from segclip import __version__

LIMIT = 100_000_000  # bytes; PyPI takes no larger file
PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".tar", ".npy"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = out.iterdir()
    return wheel


def test_wheel_holds_code_model_and_vocabularies(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    files = {path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(source).as_posix() for path in files} <= names
    assets = {name.rpartition("/")[2] for name in names if name.startswith("segclip/assets/")}
    assert {"mini.safetensors", "MODEL_CARD.md", "clip_merges.txt.gz", "sentence_tokenizer.json.gz"} <= assets
    assert {"LICENSE", "NOTICE"} <= {name.rpartition("/")[2] for name in names}


def test_wheel_is_small_and_holds_no_photos(wheel: Path) -> None:
    assert wheel.stat().st_size < LIMIT
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if Path(name).suffix.lower() in PHOTOS] == []
    assert {name.split("/")[0] for name in names} == {"segclip", f"segclip-{__version__}.dist-info"}


def test_changelog_and_citation_name_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", changelog, re.M)[:2] == ["Unreleased", __version__]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__


def test_commit_hooks_need_no_network() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [source["repo"] for source in hooks["repos"]] == ["local"]


def test_release_script_refuses_what_is_not_ready(tmp_path: Path) -> None:
    """A version without an entry in the changelog, and uncommitted changes; nothing is built."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/release.sh").write_text((ROOT / "runs/release.sh").read_text())
    package = tmp_path / "src/segclip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "7.8.9"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [0.1.0]\n")

    def release() -> str:
        script = ["bash", str(tmp_path / "runs/release.sh"), sys.executable]
        result = subprocess.run(script, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1 and not (tmp_path / "dist").exists()
        return result.stderr

    assert re.search(r"7\.8\.9.*write one", release())
    (tmp_path / "CHANGELOG.md").write_text("## [7.8.9]\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert "commit them" in release()
