"""The docs keep their word: commands, code and notebook run, the site builds, the figures are drawn by the code."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from helpers import ROOT
from helpers.pages import blocks, commands, fenced, write_inputs
from nbclient import NotebookClient

import segclip
from segclip import cli
from segclip.annotate.formats import FORMATS
from segclip.config import PAPER_WEIGHTS, ModelConfig
from segclip.data.shards import Shards
from segclip.evaluate.datasets import DATASETS
from segclip.export import EXPORTERS
from segclip.losses import LOSSES
from segclip.model.grouping import GROUPINGS
from segclip.model.towers import IMAGE_TOWERS
from segclip.train.recipes import RECIPES, mini

DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md")) if path.name != "commands.md"}  # generated
TEXTS = {**PAGES, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
RUNNING = [name for name, text in TEXTS.items() if {"sh", "python"} & {language for language, _ in fenced(text)}]
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
FIGURE = 400_000  # bytes of a figure at most: they stay in the repository for good


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands expect to find, besides what earlier commands of the page wrote."""
    folder = write_inputs(tmp_path_factory.mktemp("docs"), ROOT / "tests/golden/tiny.bin")
    for file in (folder / "pairs").iterdir():
        shutil.copy(file, folder)
    (table,) = [text for text in blocks("", PAGES["own-photos.md"]) if text.startswith("file_name")]
    (folder / "photos" / "captions.csv").write_text(table)
    for out, name in (("cc3m", "cc3m"), ("coco-karpathy", "coco")):
        options = ["--out", str(folder / out), "--name", name, "--workers", "1"]
        assert cli.main(["prepare", str(folder / "pairs"), *options]) == 0
    return folder


@pytest.fixture
def tables() -> Iterator[None]:
    """The pages add to these."""
    tables: list[Any] = [DATASETS, FORMATS, EXPORTERS, GROUPINGS, LOSSES, IMAGE_TOWERS]
    known = [dict(table) for table in tables]
    yield
    for table, items in zip(tables, known, strict=True):
        table.clear()
        table.update(items)


@pytest.mark.slow
@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("name", RUNNING)
def test_pages_commands_and_code_run(name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one folder; training does two steps, without what needs more captions than there are."""
    folder = shutil.copytree(inputs, tmp_path / "page")
    monkeypatch.chdir(folder)
    monkeypatch.setitem(RECIPES, "mini", lambda: replace(mini(), batch=2, losses=dict(PAPER_WEIGHTS)))
    for language, text in fenced(TEXTS[name]):
        if language == "python":
            exec(compile(text, name, "exec"), {})
        lines = commands(text) if language == "sh" else []
        exports = [words[1:] for words in lines if words[:2] == ["segclip", "export"]]
        if exports:
            run_exports(exports)
        for words in lines:
            if words[1:] not in exports:
                run_command(words)


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if blocks("py", text)])
def test_code_that_is_not_run_can_be_read(name: str) -> None:
    for number, text in enumerate(blocks("py", TEXTS[name])):
        compile(text, f"{name}, block {number}", "exec")


@pytest.mark.slow
def test_the_service_of_the_recipes_answers(inputs: Path) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    (code,) = [text for text in blocks("py", PAGES["recipes.md"]) if text.startswith("# service.py")]
    names: dict[str, Any] = {}
    exec(compile(code, "service.py", "exec"), names)
    client = testclient.TestClient(names["app"])
    photo = (inputs / "photo.jpg").read_bytes()
    answer = client.post("/segment", params={"labels": "cat,grass"}, content=photo)
    assert answer.status_code == 200 and answer.json()["labels"] == ["cat", "grass"]
    assert answer.json()["width"] == 451
    bad = client.post("/segment", params={"labels": "cat"}, content=b"no photo")
    assert bad.status_code == 422 and "not an image" in bad.json()["detail"]


@pytest.mark.slow
def test_the_example_of_a_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(tmp_path / "in.mp4", "w") as target:
        stream = target.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(3):
            frame = np.full((64, 96, 3), 60 * number, np.uint8)
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(stream.encode())
    command = [sys.executable, str(ROOT / "examples/video.py"), "in.mp4", "out.mp4", "cat", "dog", "--every", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["frame 0", "frame 2"]
    with av.open(tmp_path / "out.mp4") as written:
        frames = [frame.to_ndarray(format="rgb24") for frame in written.decode(video=0)]
    assert len(frames) == 3 and frames[0].shape == (64, 96, 3)


def run_exports(commands: list[list[str]]) -> None:
    """In a process of their own: torch cannot trace through the type checks of the tests. README exports `mini`."""
    arguments = [["segclip.bin" if part == "mini" else part for part in command] for command in commands]
    code = f"import sys; from segclip.cli import main; sys.exit(max(main(line) for line in {arguments!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def run_command(words: list[str]) -> None:
    program, *arguments = words
    if program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text(), words
        return
    assert program == "segclip", f"{words}: a test cannot run this; make it a bash block"
    if arguments[0] == "train" and "--resume" not in arguments:
        arguments = [part for part in arguments if part not in ("--batch", "32")] + ["--steps", "2"]
    assert cli.main(arguments) == 0, words


def test_joined_shards_can_be_read(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/reproduce.md: two folders of shards become one."""
    monkeypatch.chdir(shutil.copytree(inputs, tmp_path / "page"))
    (code,) = blocks("python", PAGES["reproduce.md"])
    exec(compile(code, "reproduce.md", "exec"), {})
    whole = Shards("both")
    assert len(whole) == 4 and whole.index.captions == 8
    assert [whole[number].captions[0] for number in range(4)] == 2 * ["cat number 1", "cat number 2"]


def shown() -> list[tuple[str, list[str]]]:
    """Page and arguments of each segclip command that is shown and not run."""
    found = []
    for name, page in PAGES.items():
        for words in (words for block in blocks("bash", page) for words in commands(block)):
            if "segclip" in words:
                found.append((name, words[words.index("segclip") + 1 :]))
    return found


def test_shown_commands_have_options_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs data, a network or GPUs is parsed and goes no further."""
    called = []

    find_command = cli.find_command

    def find_nothing(name: str, arguments: Sequence[str]) -> Callable[..., int]:
        return wraps(find_command(name, arguments))(lambda *_, **__: called.append(name) or 0)

    monkeypatch.setattr(cli, "find_command", find_nothing)
    # The weights that recipes start from are not here.
    monkeypatch.setattr("segclip.commands.train.resolve", lambda config: replace(config, model=ModelConfig()))
    commands_shown = shown()
    assert len(commands_shown) > 10
    for page, arguments in commands_shown:
        assert cli.main(arguments) == 0, (page, arguments)
    assert len(called) == len(commands_shown)


def test_no_command_hides_in_an_indented_block() -> None:
    hidden = [(name, line) for name, page in PAGES.items() for line in re.findall(r"^    segclip .*$", page, re.M)]
    assert hidden == []


@pytest.mark.slow
def test_site_builds_without_warnings_and_fetches_nothing(tmp_path: Path) -> None:
    """With every page in the navigation, and nothing that a reader's browser would load from elsewhere."""
    for part in ("docs", "src/segclip", "zensical.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (tmp_path / part).parent.mkdir(exist_ok=True)
        copy(ROOT / part, tmp_path / part)
    subprocess.run([sys.executable, str(ROOT / "runs/commands.py")], cwd=tmp_path, check=True)
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    result = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not re.search(r"(?i)warning|griffe", result.stdout + result.stderr), result.stdout + result.stderr
    pages = {f"{path.stem}/index.html" for path in (tmp_path / "docs").glob("*.md")} - {"index/index.html"}
    for page in (*pages, "index.html"):
        html = (tmp_path / "site" / page).read_text()
        assert not re.search(r"""<(?:script|img|link|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//""", html), page
    commands_page = (tmp_path / "docs/commands.md").read_text()
    titles = {f"## segclip {name}" for name in (*cli.COMMANDS, *(f"train {recipe}" for recipe in RECIPES))}
    assert titles == set(re.findall(r"^## .*$", commands_page, re.M))
    assert "--labels" in commands_page


def test_every_page_is_in_the_navigation() -> None:
    def files(entries: list) -> list[str]:
        values = [value for entry in entries for value in entry.values()]
        return [file for value in values for file in (files(value) if isinstance(value, list) else [value])]

    assert sorted(files(CONFIG["nav"])) == sorted([*PAGES, "commands.md"])


def test_every_public_name_is_on_the_python_page() -> None:
    described = set(re.findall(r"^::: (\S+)$", PAGES["api.md"], re.M))
    assert {f"segclip.{name}" for name in segclip.__all__ if name != "__version__"} <= described
    assert "segclip.__version__" in PAGES["api.md"]


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "first-photo.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the notebook's outputs"
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".json"}
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in str(output)]
    assert len(pictures) == 4


@pytest.mark.slow
def test_figures_are_drawn_by_the_code(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "runs/figures.py"), str(tmp_path)]
    subprocess.run(script, check=True, timeout=300)
    drawn = {path.name for path in tmp_path.iterdir()}
    named = set(re.findall(r"\]\(images/(\S+)\)", PAGES["how-it-works.md"] + PAGES["labels.md"]))
    assert drawn == named
    assert all((DOCS / "images" / name).stat().st_size < FIGURE for name in named)


def test_no_picture_is_left_over() -> None:
    pages = "".join(PAGES.values()) + (ROOT / "README.md").read_text()
    assert [path.name for path in (DOCS / "images").iterdir() if f"images/{path.name}" not in pages] == []
