"""Files are whole or not there, with the mode that any other program would give them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segclip.utils.files import atomic
from segclip.utils.locks import only_one_run


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_file_is_there_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt), atomic(tmp_path / name) as temporary:
            temporary.write_text("half of i")
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_two_at_a_time_do_not_meet(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as one, atomic(tmp_path / "file") as other:
        one.write_text("first to begin, last to end")
        other.write_text("the other")
    assert (tmp_path / "file").read_text() == "first to begin, last to end"
    assert os.listdir(tmp_path) == ["file"]


def test_the_mode_is_that_of_a_plain_file(tmp_path: Path, umask: int) -> None:
    with atomic(tmp_path / "text") as temporary:
        temporary.write_text("text")
    with atomic(tmp_path / "weights") as temporary:
        save_file({"weights": torch.zeros(1)}, temporary)  # which makes its files private
    for name in ("text", "weights"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".json")  # 255 bytes
    with atomic(path) as temporary:
        temporary.write_text("{}")
    assert path.read_text() == "{}"


def test_a_link_stays_one_and_what_it_names_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"photo")
    (tmp_path / "photo").chmod(0o400)
    with atomic(tmp_path / "link") as temporary:
        temporary.unlink()
        temporary.symlink_to("photo")
    assert (tmp_path / "link").readlink() == Path("photo")
    assert stat.S_IMODE((tmp_path / "photo").stat().st_mode) == 0o400


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "nowhere" / "file"):
        pass


def test_what_a_killed_run_left_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    block = atomic(tmp_path / "masks" / "file")
    block.__enter__()
    (tmp_path / "pairs.tar.part").touch()  # of something else
    with only_one_run(tmp_path):
        assert not os.listdir(tmp_path / "masks") and (tmp_path / "pairs.tar.part").exists()
        with pytest.raises(ValueError, match="another run"), only_one_run(tmp_path):
            pass
