"""One run at a time, and an error of the run is its own."""

import threading
from pathlib import Path

import pytest

from segclip.utils.locks import only_one_run, only_one_writer


def test_a_run_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with only_one_run(tmp_path):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with pytest.raises(ValueError, match="another run is writing to this folder"), only_one_run(tmp_path, wait=0.1):
        pass
    threading.Timer(0.2, leave.set).start()
    with only_one_run(tmp_path, wait=60.0):
        thread.join()


def test_what_the_run_raises_is_not_taken_for_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    for lock in (only_one_run(tmp_path), only_one_writer(tmp_path / "r.json")):
        with pytest.raises(PermissionError, match="of a photo"), lock:
            raise PermissionError("of a photo")
    (tmp_path / "file").touch()
    for lock in (only_one_run(tmp_path / "file"), only_one_writer(tmp_path / "file" / "r.json")):
        with pytest.raises(ValueError, match=r"file: cannot be written .*; give another folder"), lock:
            pass


def test_writers_of_different_files_do_not_meet(tmp_path: Path) -> None:
    one, other, again = (only_one_writer(tmp_path / name) for name in ("a.json", "b.json", "a.json"))
    with one, other, pytest.raises(ValueError, match=r"a\.json: another run is writing it"), again:
        pass
