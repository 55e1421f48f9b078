"""What is published: the wheel holds all that is needed and nothing that is not, and the papers around it agree."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
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
    assert {name.split("/")[0] for name in names} == {"segclip", f"segclip-{VERSION}.dist-info"}


def test_changelog_and_citation_name_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", changelog, re.M)[:2] == ["Unreleased", VERSION]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION and citation["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2211.14813"


def test_forms_ask_for_what_helps() -> None:
    """The bug form: the command, the labels, the photo, the versions; every form can be read."""
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert {field["id"] for field in forms["bug"]["body"]} >= {"command", "labels", "photo", "versions"}
    assert set(forms) == {"bug", "question", "config"}


def test_commit_hooks_need_no_network() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [source["repo"] for source in hooks["repos"]] == ["local"]


def test_release_script_refuses_what_is_not_ready(tmp_path: Path) -> None:
    """A version without an entry in the changelog, and uncommitted changes; nothing is built."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/release.sh").write_text((ROOT / "runs/release.sh").read_text())
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.8.9"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [0.1.0]\n")

    def release() -> str:
        script = ["bash", str(tmp_path / "runs/release.sh"), sys.executable]
        result = subprocess.run(script, capture_output=True, text=True, timeout=60)
        assert result.returncode == 1 and not (tmp_path / "dist").exists()
        return result.stderr

    assert "no entry [7.8.9]" in release()
    (tmp_path / "CHANGELOG.md").write_text("## [7.8.9]\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert "uncommitted changes" in release()
