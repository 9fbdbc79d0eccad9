"""What has to start at once does, and nothing heavy is imported on the way."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from s3prl_ekd.student.folder import save_student

HEAVY = {"torch", "numpy", "s3prl", "transformers", "lhotse", "lightning", "yaml", "tqdm"}
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "s3prl-ekd")


def run(*command: str) -> tuple[float, str]:
    """CPU seconds of a process, which other processes do not change much, and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


@pytest.mark.parametrize(
    ("command", "limit"), [((sys.executable, "-c", "import s3prl_ekd"), 0.1), ((PROGRAM, "--help"), 0.3)]
)
def test_starts_quickly(command, limit):
    assert min(run(*command)[0] for _ in range(5)) < limit


HELP = """
import contextlib
from s3prl_ekd import cli
with contextlib.suppress(SystemExit):
    cli.main(["--help"])
"""


@pytest.mark.parametrize("action", ["import s3prl_ekd", HELP], ids=["import", "help"])
def test_nothing_heavy_is_imported(action):
    _, printed = run(sys.executable, "-c", f"{action}\nimport sys; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in printed.splitlines()[-1].split()}
    assert "s3prl_ekd" in loaded
    assert not HEAVY & loaded


def test_ekd_student_imports_nothing_of_s3prl(tiny_student, tmp_path):
    """s3prl.hub imports all of its upstreams by itself, whatever ``-u`` says; ours adds none to that."""
    folder = str(save_student(tmp_path / "student", tiny_student))
    code = f"""
import sys
from s3prl_ekd.s3prl_plugin import hub
def theirs():
    return {{name for name in sys.modules if name.partition(".")[0] == "s3prl"}}
from s3prl_ekd import upstream
upstream.ekd_student({folder!r})
assert not theirs(), theirs()
hub.register()
import s3prl.hub
before = theirs()
assert "s3prl.upstream.distiller.hubconf" in before
s3prl.hub.ekd_student({folder!r})
assert theirs() == before, theirs() - before
print("same")
"""
    assert run(sys.executable, "-c", code)[1].splitlines()[-1] == "same"
