"""Files and folders that are replaced in one go: what a killed process leaves, and who clears it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from helpers_processes import another_at_work

from s3prl_ekd import files
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path, only_writer, write_json


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "text").write_text(text)


def killed(work, *args) -> int:
    """Do something in a process that kills itself; its number."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    return process.pid


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def begin(path: Path) -> None:
    with atomic_path(path) as temporary:
        fill(temporary, "half") if path.suffix == "" else temporary.write_text("half")
        die()


def replace_slowly(path: Path, renames: int) -> None:
    """Where names cannot be exchanged, and killed before the rename after so many."""
    replace, left = os.replace, iter(range(renames))
    files._exchange = lambda *_: False
    files.os.replace = lambda *names: replace(*names) if next(left, None) is not None else die()
    with atomic_path(path) as temporary:
        fill(temporary, "new")


@pytest.mark.parametrize("name", ["folder", "file.json"])
def test_leftovers_of_a_killed_process_are_cleared(name, tmp_path):
    path = tmp_path / name
    for _ in range(2):
        killed(begin, path)
        (leftover,) = tmp_path.iterdir()
        assert leftover.name.startswith(f".{path.stem}.")
    with atomic_path(path) as temporary:
        assert list(tmp_path.iterdir()) == []
        fill(temporary, "whole")
    assert list(tmp_path.iterdir()) == [path]


def test_what_others_are_writing_stays(tmp_path):
    """Those that live, those of other machines, and those of other files."""
    kept = [f".a.{socket.gethostname()}-{os.getppid()}.part.json", ".a.elsewhere-999999999.part.json"]
    kept += [".b.999999999.part.json", ".a.999999999.part.txt", ".a.part.json", ".a.x.part.json"]
    gone = [".a.999999999.part.json", f".a.{socket.gethostname()}-{os.getpid()}.part.json"]
    for name in kept + gone:
        (tmp_path / name).write_text("")
    write_json(tmp_path / "a.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "a.json"}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for text in ("old", "new"):
        with atomic_path(tmp_path / "folder") as temporary:
            fill(temporary, text)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        assert (tmp_path / "folder" / "text").read_text() == text


@pytest.mark.parametrize(("renames", "there"), [(0, True), (1, False)])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(renames, there, tmp_path, caplog):
    """Between the two renames there is none; it is back as soon as the next one begins."""
    folder = tmp_path / "folder"
    fill(folder, "old")
    killed(replace_slowly, folder, renames)
    assert folder.exists() == there
    with pytest.raises(KeyError), atomic_path(folder):
        raise KeyError
    assert (folder / "text").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]
    assert ("put back" in caplog.text) != there


def test_a_folder_has_one_writer(tmp_path):
    with another_at_work(tmp_path / "out") as other:
        with pytest.raises(UserError, match=f"another process is at work in {tmp_path / 'out'}"):
            only_writer(tmp_path / "out").__enter__()
        other.kill()
        other.wait()
        with only_writer(tmp_path / "out"):
            pass
    assert list((tmp_path / "out").iterdir()) == []


def test_a_writer_may_wait_for_the_one_before(tmp_path):
    entered = threading.Event()

    def write():
        with only_writer(tmp_path / "out", wait=True):
            entered.set()

    with another_at_work(tmp_path / "out") as other:
        waiting = threading.Thread(target=write)
        waiting.start()
        assert not entered.wait(0.3)
        other.stdin.close()  # it leaves, and takes the file away that the lock is on
        other.wait()
        waiting.join(60)
    assert entered.is_set()
    assert list((tmp_path / "out").iterdir()) == []
