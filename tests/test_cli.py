"""The command, in process: what it writes, its exit codes, and one line for whatever goes wrong."""

import inspect
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

import segclip
from segclip.cli import COMMANDS, find_command, main
from segclip.segment.result import Segmentation
from segclip.segment.segmenter import Segmenter
from segclip.train.recipes import mini
from segclip.train.resolve import resolve
from segclip.visualize import LISTED

Run = Callable[..., tuple[int, str, str]]
PHOTO = skimage.data.coffee()[::4, ::4]  # 100x150


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "cup.jpg"
    Image.fromarray(PHOTO).save(path)
    return path


@pytest.fixture
def run(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `segclip segment` into tmp_path/out; gives the exit code, stdout and stderr."""

    def run(*arguments: str | Path, labels: tuple[str, ...] = ("cup", "table"), out: Path | None = None):
        out = out or tmp_path / "out"
        model = () if "--model" in arguments else ("--model", weights)
        argv = ["segment", *arguments, *model, "--labels", *labels, "--out", out]
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return run


def written(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_one_photo(run: Run, photo: Path, tmp_path: Path) -> None:
    code, out, _ = run(photo, labels=("cup", "dining table"))
    assert code == 0
    assert written(tmp_path / "out") == ["cup.json", "cup.mask.png", "cup.overlay.png"]
    record = json.loads((tmp_path / "out/cup.json").read_text())
    assert record["labels"] == ["cup", "dining table"] and (record["width"], record["height"]) == (150, 100)
    assert "label" in out and "area" in out and "cup.jpg, 150x100" in out
    assert all(found["label"] in out for found in record["found"])
    assert record["presence"].keys() == {"cup", "dining table"}


def test_labels_that_are_not_found_are_said(run: Run, photo: Path, tmp_path: Path) -> None:
    """More labels than a small photo has patches: those without a pixel have a row each, up to a limit."""
    labels = ("cup", "[bold]rocket[/]", "猫", *(f"thing {i}" for i in range(200)))
    code, out, _ = run(photo, "--presence", "none", labels=labels)
    record = json.loads((tmp_path / "out/cup.json").read_text(encoding="utf-8"))
    found = {one["label"] for one in record["found"]}
    assert code == 0 and record["not_found"] == [label for label in labels if label not in found]
    assert record["presence"] == dict.fromkeys(labels, 1.0)
    rows = [[cell.strip() for cell in line.split("│")[1:]] for line in out.splitlines() if "not found" in line]
    assert [row[:2] for row in rows[:-1]] == [[name, "not found"] for name in record["not_found"][:LISTED]]
    assert rows[-1][0] == f"and {len(record['not_found']) - LISTED} more" and "[bold]rocket[/]" in out


@pytest.mark.parametrize(
    ("options", "protocol", "background"),
    [
        (("--protocol", "paper", "--background", "0.3"), "paper", 0.3),
        (("--background", "none"), "open", None),
        (("--device", "cpu", "--background", "AUTO"), "open", "auto"),
    ],
)
def test_options(run: Run, photo: Path, tmp_path: Path, options: tuple[str, ...], protocol: str, background: object):
    assert run(photo, *options)[0] == 0
    record = json.loads((tmp_path / "out/cup.json").read_text())
    assert (record["protocol"], record["background"]) == (protocol, background)
    if background is None:
        assert (np.asarray(Image.open(tmp_path / "out/cup.mask.png")) > 0).all()


def test_folder_with_one_bad_photo(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(PHOTO[i:]).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:2000])
    code, _, err = run(folder)
    assert code == 1
    assert len(written(tmp_path / "out")) == 15 and "3.json" not in written(tmp_path / "out")
    assert "5 photos written" in err and err.count("failed:") == 1 and "3.png" in err.split("failed:")[1]


def test_same_stems_do_not_overwrite_each_other(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, name in enumerate(("a/cup.png", "b/cup.png", "a/CUP.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PHOTO[i:]).save(tmp_path / name)
    names = [tmp_path / name for name in ("a/cup.png", "b/cup.png", "a/CUP.jpg", "a/cup.png")]
    assert run(*names)[0] == 0
    assert "cup-2" in caplog.text and caplog.text.count("another photo is called") == 2
    assert [n for n in written(tmp_path / "out") if n.endswith("json")] == ["CUP-3.json", "cup-2.json", "cup.json"]
    sizes = [json.loads((tmp_path / "out" / f"{s}.json").read_text())["height"] for s in ("cup", "cup-2", "CUP-3")]
    assert sizes == [100, 99, 98]


def test_no_input_is_overwritten(run: Run, tmp_path: Path) -> None:
    for name in ("cup.png", "cup.mask.png"):
        Image.fromarray(PHOTO).save(tmp_path / name)
    before = (tmp_path / "cup.mask.png").read_bytes()
    assert run(tmp_path / "cup.png", tmp_path / "cup.mask.png", out=tmp_path)[0] == 0
    assert (tmp_path / "cup.mask.png").read_bytes() == before
    assert (tmp_path / "cup-2.mask.png").exists()


def noise(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)


def truncated(path: Path) -> None:
    noise(path)
    path.write_bytes(path.read_bytes()[:1500])


def bomb(path: Path) -> None:
    """The header of a PNG of 20000x20000 pixels."""
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00N \x00\x00N \x08\x02\x00\x00\x00"
    check = zlib.crc32(header[12:]).to_bytes(4, "big")
    path.write_bytes(header + check + b"\x00\x00\x00\x00IEND\xaeB`\x82")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("text.jpg", lambda path: path.write_text("no image")),
        ("cut.jpg", truncated),
        ("empty.png", lambda path: path.write_bytes(b"")),
        ("bomb.png", bomb),
        ("missing.png", lambda path: None),
        ("empty_folder", lambda path: path.mkdir()),
    ],
)
def test_bad_photos(run: Run, tmp_path: Path, photo: Path, name: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / name)
    code, _, err = run(tmp_path / name)
    assert code == 2 and err.count("\n") == 1 and name in err
    code, _, err = run(tmp_path / name, photo)
    assert code == 1 and name in err
    assert written(tmp_path / "out") == ["cup.json", "cup.mask.png", "cup.overlay.png"]


@pytest.mark.parametrize("kind", ["CMYK", "L", "P", "RGBA", "LA", "1", "I;16", "rotated", "1x1", "1x4000", "4000x1"])
def test_unusual_photos_work(run: Run, tmp_path: Path, kind: str) -> None:
    path, size = tmp_path / "photo.tif", PHOTO.shape[:2]
    image = Image.fromarray(PHOTO)
    if kind == "I;16":
        image = Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257)
    elif kind == "rotated":
        path, size = tmp_path / "photo.jpg", size[::-1]
    elif "x" in kind:
        size = (int(kind.split("x")[0]), int(kind.split("x")[1]))
        image = Image.fromarray(np.resize(PHOTO, (*size, 3)))
    else:
        image = image.convert(kind)
    image.getexif()[0x0112] = 6 if kind == "rotated" else 1  # to be turned by a quarter, or upright
    image.save(path, exif=image.getexif())
    code, _, _ = run(path)
    record = json.loads((tmp_path / "out/photo.json").read_text())
    assert code == 0 and (record["height"], record["width"]) == size


@pytest.mark.parametrize(
    ("labels", "why"), [((), "label"), (("cup", ""), "label"), (("cup", "cup"), "cup"), (("cup", " \t"), "label")]
)
def test_bad_labels(run: Run, photo: Path, tmp_path: Path, labels: tuple[str, ...], why: str) -> None:
    code, _, err = run(photo, labels=labels)
    assert code == 2 and err.count("\n") == 1 and why in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "labels",
    [
        tuple(f"thing {i}" for i in range(5000)),
        ("猫", "собака", "قطة", "🐈", "[bold]x[/]"),
        ("cup", "very " * 200 + "small"),
        ("cup",),
    ],
    ids=["5000", "scripts", "long", "one"],
)
def test_unusual_labels_work(
    run: Run, photo: Path, tmp_path: Path, labels: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(photo, labels=labels)[0] == 0
    assert json.loads((tmp_path / "out/cup.json").read_text(encoding="utf-8"))["labels"] == list(labels)
    assert ("longer than the model's" in caplog.text) == (len(labels[-1]) > 500)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--model", "minni"), "did you mean mini"),
        (("--model", "nowhere.safetensors"), "no such file"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--background", "2"), "0..1"),
        (("--background", "black"), "0..1"),
        (("--presence", "maybe"), "presence 'maybe'; give auto, or none"),
    ],
)
def test_bad_options(run: Run, photo: Path, arguments: tuple[str, ...], why: str) -> None:
    code, _, err = run(photo, *arguments)
    assert code == 2 and err.count("\n") == 1 and why in err


def test_folder_that_cannot_be_written(run: Run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(photo, out=tmp_path / "file")
    assert code == 2 and err.count("\n") == 1 and "cannot be written" in err
    assert run(photo, out=tmp_path / "file" / "below")[0] == 2


def test_a_photo_whose_files_cannot_be_written(
    run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "other.png")
    save = Segmentation.save

    def full(self: Segmentation, folder: Path, stem: str) -> object:
        if stem == "cup":
            raise OSError(28, "No space left on device")
        return save(self, folder, stem)

    monkeypatch.setattr(Segmentation, "save", full)
    code, _, err = run(photo, tmp_path / "other.png")
    assert code == 1 and "No space left" in err and (tmp_path / "out/other.json").exists()


def test_no_photo_given(run: Run) -> None:
    code, _, err = run()
    assert code == 2 and "before --labels" in err


@pytest.mark.parametrize(
    ("raised", "code", "why"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("no kernel"), 2, "cup.jpg: cannot be segmented: no kernel"),
        (ZeroDivisionError("a bug"), 2, "ZeroDivisionError: a bug"),
    ],
)
def test_whatever_happens_is_one_line(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, why: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.delenv("SEGCLIP_DEBUG", raising=False)
    monkeypatch.setattr(Segmenter, "encode", fail)
    got, _, err = run(photo)
    assert got == code and err.count("\n") == 1 and why in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == main(["-V"]) == 0
    assert capsys.readouterr().out == 2 * f"segclip {segclip.__version__}\n"


def test_a_shell_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In bash: a command's name, and an option of it."""
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "segclip.bash").write_text(capsys.readouterr().out)
    for words, expected in ((["segclip", "seg"], "segment"), (["segclip", "segment", "--labels-f"], "--labels-file")):
        script = f"""source segclip.bash; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
            $(complete -p segclip | sed 's/.*-F \\([^ ]*\\).*/\\1/') segclip; echo "${{COMPREPLY[@]}}" """
        found = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert expected in found.stdout.split(), found.stderr
    assert main(["--print-completion", "csh"]) == 2
    assert "--print-completion csh; give one of bash, zsh, fish, tcsh" in capsys.readouterr().err


def test_short_and_default_out(
    weights: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["segment", str(photo), "--model", str(weights), "--labels", "cup"]
    assert main([*command, "-o", "there"]) == 0 and written(tmp_path / "there")
    assert main(command) == 0 and "1 photo written to segclip-out" in capsys.readouterr().err
    assert written(tmp_path / "segclip-out") == written(tmp_path / "there")
    assert main(["regions", str(photo), "--model", str(weights)]) == 0
    assert (tmp_path / "segclip-out/cup.regions.png").exists()


def test_quiet(run: Run, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only what failed is said; the next command speaks again."""
    other = tmp_path / "other" / "cup.png"
    other.parent.mkdir()
    Image.fromarray(PHOTO).save(other)
    assert run(photo, other, "--quiet") == (0, "", "")
    assert not caplog.records and len(written(tmp_path / "out")) == 6
    code, out, err = run(photo, tmp_path / "missing.png", "--quiet")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "missing.png" in err
    assert "photo written" in run(photo)[2]


def test_json_lines(run: Run, photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    code, out, err = run(photo, bad, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and "1 photo written" in err and len(lines) == 2
    assert lines[0]["photo"] == str(photo) and lines[1]["photo"] == str(bad) and "not an image" in lines[1]["error"]
    files = [tmp_path / "out" / f"cup.{end}" for end in ("overlay.png", "mask.png", "json")]
    assert lines[0]["files"] == list(map(str, files)) and all(file.exists() for file in files)
    record = json.loads(files[2].read_text())
    assert {key: value for key, value in lines[0].items() if key not in ("photo", "files")} == record
    assert len(run(photo, "--json", "--quiet")[1].splitlines()) == 1


def test_several_photos_are_a_line_each(run: Run, photo: Path, tmp_path: Path) -> None:
    Image.fromarray(PHOTO[:50]).save(tmp_path / "[b]猫.png")
    code, out, _ = run(photo, tmp_path / "[b]猫.png", "--presence", "none")
    title, *lines = out.splitlines()
    assert code == 0 and title.split() == ["photo", "size", "found"] and len(lines) == 2
    assert lines[0].startswith("cup.jpg ") and "150x100" in lines[0] and lines[1].startswith("[b]猫.png ")
    for line, stem in zip(lines, ("cup", "[b]猫"), strict=True):
        found = json.loads((tmp_path / f"out/{stem}.json").read_text())["found"]
        assert all(f"{one['label']} {one['share']:.1%}" in line for one in found)


def test_labels_of_a_file(run: Run, photo: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\ufeff# things\ntench, a fish\n\n  猫|cat \r\n", encoding="utf-8")
    assert run(photo, "--labels-file", file, labels=("cup",))[0] == 0
    assert json.loads((tmp_path / "out/cup.json").read_text(encoding="utf-8"))["labels"] == [
        "cup",
        "tench, a fish",
        "猫",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "labels.txt: cannot be read (No such file or directory); check the path"),
        (b"caf\xe9\n", "labels.txt: is not UTF-8 (invalid continuation byte, byte 3); save it as UTF-8"),
        (b"# nothing\n\n", "labels.txt: has no label; write one a line"),
        (b"cup\nCup\n", "repeats label 1"),
    ],
)
def test_bad_files_of_labels(
    weights: Path, photo: Path, tmp_path: Path, content: bytes | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "labels.txt").write_bytes(content)
    command = ["segment", str(photo), "--model", str(weights), "--out", str(tmp_path / "out")]
    assert main([*command, "--labels-file", str(tmp_path / "labels.txt")]) == 2
    err = capsys.readouterr().err
    assert why in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert main(command) == 2
    assert "no labels; give --labels cat dog, or --labels-file FILE" in capsys.readouterr().err


def test_folders_below(run: Run, tmp_path: Path) -> None:
    """Each photo once, hidden folders and links to folders left out."""
    for name in ("a.png", "b/c/a.png", "b/d.png", ".hidden/e.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTO).save(tmp_path / "photos" / name)
    (tmp_path / "photos/b/round").symlink_to(tmp_path / "photos")
    assert run(tmp_path / "photos", "--recursive")[0] == 0
    stems = {name.split(".")[0] for name in written(tmp_path / "out")}
    assert stems == {"a", "a-2", "d"}
    assert run(tmp_path / "photos", out=tmp_path / "flat")[0] == 0 and len(written(tmp_path / "flat")) == 3
    (tmp_path / "empty/below").mkdir(parents=True)
    code, _, err = run(tmp_path / "empty", "--recursive")
    assert code == 2 and "no photos in this folder or below it" in err


def test_a_photo_on_standard_input(run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    code, out, _ = run("-")
    assert code == 0 and written(tmp_path / "out") == ["stdin.json", "stdin.mask.png", "stdin.overlay.png"]
    assert "150x100" in out
    assert run(photo, out=tmp_path / "file")[0] == 0
    assert (tmp_path / "out/stdin.json").read_text() == (tmp_path / "file/cup.json").read_text()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    code, _, err = run("-")
    assert code == 2 and "standard input (-): the file is empty" in err and err.count("\n") == 1
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert "standard input (-) is a terminal; give a photo" in run("-")[2]


def test_convert(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(weights), str(tmp_path / "new.safetensors")]) == 0
    assert (tmp_path / "new.safetensors").exists()
    assert main(["convert", str(tmp_path / "none.bin"), str(tmp_path / "x.safetensors")]) == 2
    err = capsys.readouterr().err
    assert "no such file" in err and "Traceback" not in err


@pytest.mark.parametrize("argv", [["segment"], ["fly"], ["segment", "--labels"], ["convert", "one"]])
def test_arguments_that_cannot_be_read(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_all_commands_needs_no_torch() -> None:
    code = "import sys; from segclip.cli import main; sys.exit(main(['--help']) or 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_what_its_line_in_the_table_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (inspect.getdoc(find_command(name, ())) or "").splitlines()[0] == COMMANDS[name]
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: segclip {name} ")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["segment"], ["one of open, paper, groupvit", "default: open"]),
        (["evaluate"], ["One of voc2012, context60"]),
        (
            ["train"],
            ["paper", "mini", "debug", "on generated scenes", "--resume", "[800 steps, batch 256, lr 0.001, bf16"],
        ),
        (["train"], ["[10 epochs, batch 768, lr 0.004, fp32, from --init-from]", "lr 0.002, fp32, a new model]"]),
        (["train", "debug"], ["--model.embed", "(default: 64)", "--init-from", "--max-grad-norm"]),
        (["train", "mini"], ["number C of learnable centers, so of regions. (default: 48)", "(default: mini)"]),
    ],
)
def test_help_has_what_there_is(
    arguments: list[str], shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names in the tables, and a recipe's model, with the numbers of the weights that it starts from."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*arguments, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in shown)


@pytest.mark.parametrize(
    ("former", "now", "value"),
    [
        ("--start", "--init-from", "mini"),
        ("--centers", "--init-centers", "random"),
        ("--clip", "--max-grad-norm", "2.0"),
        ("--keep", "--keep-checkpoints", "5"),
        ("--cache.likeness", "--soft-target-scale", "7.0"),
        ("--cache.reconstructed", "--cache.reconstruction-fraction", "0.5"),
    ],
)
def test_former_options_still_work(former: str, now: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr("segclip.commands.train._train", lambda run: taken.append(run) or 0)
    for option in (former, now):
        given = [option] if value is None else [option, value]
        assert main(["train", "mini", "--data", "shards", "--out", "run", *given]) == 0
    assert taken[0] == taken[1]
    if former != "--start":
        assert taken[0].config != resolve(mini())


def test_train_without_a_recipe_and_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "give a recipe (paper, mini, debug) and --out RUN, or --resume RUN alone" in capsys.readouterr().err
    assert main(["train", "--workers", "2", "debug", "--out", "run"]) == 2
    assert "--workers 2 stands before the recipe" in capsys.readouterr().err
    assert main(["train", "debug", "--out", "run", "--batch", "0"]) == 2
    err = capsys.readouterr().err
    assert "batch 0; give at least 1" in err
