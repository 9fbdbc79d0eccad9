"""How a command ends, what an error says in one line, and which device is taken."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch

from s3prl_ekd.devices import check_device, default_device
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.processes import die_with_parent, run_command


def raising(error: BaseException):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("no such recipe"), 2, "prog: error: no such recipe\n"),
        (OSError(28, "No space left on device", "a\n.ckpt"), 2, "prog: error: a .ckpt: No space left on device\n"),
        (KeyboardInterrupt(), 130, "prog: interrupted; run it again\n"),
        (KeyboardInterrupt("add --resume"), 130, "prog: interrupted; add --resume\n"),
    ],
)
def test_what_needs_no_traceback_is_one_line(error, status, said, capsys):
    assert run_command("prog", raising(error), go_on="run it again") == status
    assert capsys.readouterr().err == said
    assert run_command("prog", raising(error), silent=True) == status
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError("of no file"), KeyError("a fault of ours")])
def test_what_needs_a_traceback_has_it(error):
    with pytest.raises(type(error)):
        run_command("prog", raising(error))


def test_the_development_mode_shows_the_traceback_of_a_mistake():
    code = "from s3prl_ekd.processes import run_command; run_command('prog', lambda: open('/no/recipe.yaml'))"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("prog: error: /no/recipe.yaml: No such file or directory\n")


def test_the_status_is_that_of_the_work():
    assert [run_command("prog", lambda status=status: status) for status in (None, 0, 3)] == [0, 0, 3]


def test_one_line_of_an_error():
    assert one_line(ValueError("two\n  lines\tand tabs ")) == "two lines and tabs"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(KeyError("rows")) == "no entry 'rows'"
    assert one_line("a \n text") == "a text"
    assert one_line(ValueError("begin" + "x" * 99 + "end"), 21) == "beginxxx ... xxxxxend"


def test_devices(monkeypatch):
    assert check_device("cpu") == "cpu"
    for name in ("gpu", "cuda:one", "cpu:x"):
        with pytest.raises(UserError, match=f"--device {name}: unknown; expected cpu, cuda"):
            check_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == default_device("gpu") == "cpu"
    with pytest.raises(UserError, match="--device cuda: torch sees no GPU here"):
        check_device("cuda")
    with pytest.raises(UserError, match="--device xpu: cannot be used"):
        check_device("xpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_device() == check_device("cuda") == "cuda"
    assert default_device("cpu") == "cpu"
    assert check_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="--device cuda:2: torch sees 2 GPUs here, counted from 0"):
        check_device("cuda:2")


def test_a_process_ends_with_the_one_that_started_it():
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=_parent, args=(sender,)).start()
    child = receiver.recv()
    for _ in range(500):
        if not os.path.exists(f"/proc/{child}") or "Z" in _state(child):
            return
        time.sleep(0.02)
    pytest.fail("it goes on alone")


def _parent(sender) -> None:
    child = multiprocessing.get_context("fork").Process(target=_child)
    child.start()
    time.sleep(0.2)
    sender.send(child.pid)
    os._exit(0)


def _child() -> None:
    die_with_parent()
    time.sleep(60)


def _state(process: int) -> str:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
