"""A small part of ``make fuzz``: see tests/fuzz."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import kinds, law, table
from fuzz.change import Change, places
from helpers_models import TESTS

from s3prl_ekd.errors import UserError

HERE = TESTS
N = 25


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What came of N cases of each kind, in a process that has no threads when it forks."""
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fuzz", "--n", str(N), "--seed", "1", "--minutes", "5", "--json", str(path)]
    done = subprocess.run(command, env=environment, cwd=path.parent, capture_output=True, text=True)
    assert path.exists(), done.stderr[-2000:]
    assert done.returncode == bool(json.loads(path.read_text())["broken"])
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", kinds.NAMES)
def test_it_works_or_is_refused_in_one_line(name, found):
    assert [case for case in found["broken"] if case["kind"] == name] == []
    row = found["kinds"][name]
    assert row["works"] + row["refused"] == N
    assert row["works"] > 0, "not even good input works"
    assert row["refused"] > 0, "nothing was refused: the changes are too tame"


class Example:
    """A kind whose case 1 does what is asked of it."""

    ABOUT = "examples"
    __name__ = "example"

    def __init__(self, work) -> None:
        self.work = work

    def prepare(self, good: Path) -> None:
        (good / "here").touch()

    def draw(self, good: Path, change: Change):
        return (lambda: None) if change.harmless else self.work


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


def refused_after_writing() -> None:
    Path("left").touch()
    raise UserError("no")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def devour() -> None:
    bytearray(2 * law.MEMORY)


@pytest.mark.parametrize(
    ("work", "verdict", "message"),
    [
        (lambda: 3, law.WORKS, ""),
        (raising(UserError("a.wav: truncated; replace it")), law.REFUSED, "a.wav: truncated; replace it"),
        (raising(KeyError("x")), law.BROKEN, "KeyError: 'x'"),
        (raising(UserError("")), law.BROKEN, "not one printable line"),
        (refused_after_writing, law.BROKEN, "refused, but left ['left']"),
        (lambda: Path(".a.1.part").touch(), law.BROKEN, "left ['.a.1.part']"),
        (crash, law.BROKEN, "the process ended with status -9"),
        (devour, law.BROKEN, "MemoryError"),
    ],
)
def test_the_law_notices(work, verdict, message, tmp_path):
    outcomes = law.run(Example(work), tmp_path, seed=0, numbers=range(2))
    assert outcomes[0].verdict == law.WORKS
    assert outcomes[1].verdict == verdict
    assert message in outcomes[1].message


def test_time_is_bounded(tmp_path, monkeypatch):
    def spin() -> None:
        while True:
            pass

    monkeypatch.setattr(law, "CPU_SECONDS", 0)
    assert "of CPU" in law.run(Example(spin), tmp_path / "a", seed=0, numbers=range(1, 2))[1].message
    monkeypatch.setattr(law, "CPU_SECONDS", 30)
    monkeypatch.setattr(law, "WALL_SECONDS", 0.5)
    assert "did not end" in law.run(Example(spin), tmp_path / "b", seed=0, numbers=range(1, 2))[1].message


def test_changes_are_the_same_for_the_same_seed():
    value = {"a": [1, 2.5, {"b": "text"}], "c": None}

    def draw(seed: int):
        change = Change(random.Random(seed))
        changed = change.data(bytes(range(200))), repr(change.mapping(value)), change.text("a: 1\nb: 2\n", ("[", "x"))
        return *changed, change.notes

    drawn = [draw(seed) for seed in range(20)]
    assert drawn == [draw(seed) for seed in range(20)]
    assert len({text for _, text, _, _ in drawn}) > 15
    assert value == {"a": [1, 2.5, {"b": "text"}], "c": None}
    assert [path for path, _, _ in places(value)] == [".a", ".a.0", ".a.1", ".a.2", ".a.2.b", ".c"]


def test_the_table_replaces_the_one_in_the_document(tmp_path):
    outcome = {"verdict": law.WORKS, "message": "", "seconds": 0.25, "mebibytes": 12.0, "notes": ""}
    broken = outcome | {"verdict": law.BROKEN, "message": "KeyError: 3", "notes": "bit 7"}
    result = table.summary({"audio": {0: outcome, 1: outcome, 2: broken}}, seed=5)
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.refresh(document, result)
    text = document.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\nSeed 5.")
    assert "| 3 | 2 | 0 | 1 | 0.2 | 12 |" in text
    assert text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text
    assert result["broken"] == [{"kind": "audio", "case": 2, "message": "KeyError: 3", "notes": "bit 7"}]
