"""Processes that run a few at a time: their order, their environment, their ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_models import TESTS
from helpers_processes import runs
from helpers_s3prl import python

from s3prl_ekd.errors import UserError
from s3prl_ekd.superb.jobs import Job, JobError, run_jobs, steps_done


def job(tmp_path: Path, name: str, code: str, **options) -> Job:
    script, log = tmp_path / f"{name}.py", tmp_path / f"{name}.txt"
    script.write_text(code)
    return Job(name=name, module="helpers_processes", arguments=(str(script),), log=log, steps=1, **options)


def test_jobs_wait_for_others_and_run_side_by_side(tmp_path):
    touch = "import pathlib, sys; pathlib.Path(r'{}').touch()"
    need = "import pathlib, sys; sys.exit(not pathlib.Path(r'{}').exists())"
    meet = (
        "import pathlib, time\npathlib.Path(r'{0}/{1}').touch()\n"
        "while not pathlib.Path(r'{0}/{2}').exists(): time.sleep(.01)"
    )
    jobs = [
        job(tmp_path, "second", need.format(tmp_path / "made"), after=("first",)),
        job(tmp_path, "first", touch.format(tmp_path / "made")),
        job(tmp_path, "one", meet.format(tmp_path, "a", "b")),
        job(tmp_path, "two", meet.format(tmp_path, "b", "a")),
    ]
    run_jobs(jobs, at_a_time=2, threads=1, title="test")


_RUN_JOBS = """
import sys
from pathlib import Path
from s3prl_ekd.superb.jobs import Job, run_jobs
for threads, script in ((2, "job.py"), (1, "job.py"), (3, "sleeper.py")):
    one = Job(name="one", module="helpers_processes", arguments=(script,), log=Path(f"{threads}.txt"), steps=1)
    run_jobs([one], at_a_time=1, threads=threads, title="test")
"""


def test_jobs_are_as_if_started_alone_and_end_with_what_runs_them(tmp_path):
    """Each has its own threads, environment and end, though all are forked off one process that has imported s3prl.

    In a new process, since one has a single forkserver and other tests here use theirs.
    """
    (tmp_path / "job.py").write_text(
        "import atexit, os, sys, torch; atexit.register(print, 'the end')\n"
        "print(torch.get_num_threads(), os.environ['OF_THIS_TEST'], os.getcwd(), 's3prl.hub' in sys.modules)\n"
        "print('to stderr', repr(sys.stdin.read()), file=sys.stderr)"
    )
    (tmp_path / "sleeper.py").write_text("import os, time; print('process', os.getpid(), flush=True); time.sleep(300)")
    path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"OF_THIS_TEST": "yes", "PYTHONPATH": path}
    parent = subprocess.Popen(
        [sys.executable, "-c", _RUN_JOBS], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    log, deadline = tmp_path / "3.txt", time.monotonic() + 240
    while not (log.exists() and "process" in log.read_text()):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for threads in (2, 1):
        said = (tmp_path / f"{threads}.txt").read_text().splitlines()[1:]
        assert said == [f"{threads} yes {tmp_path} True", "to stderr ''", "the end"]
    sleeper = int(log.read_text().split()[-1])
    assert runs(sleeper)
    parent.kill()
    parent.wait()
    while runs(sleeper):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_jobs_are_forked_off_leaves_cuda_alone():
    """CUDA, once initialised, cannot be used in a forked process; and s3prl asks for it when it is imported."""
    code = (
        "import sys, torch\n"
        "def refuse(*_): raise SystemExit('initialises CUDA')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda._lazy_init = refuse\n"
        "torch.cuda._device_count_nvml = lambda: 1\n"
        "import s3prl_ekd.superb.preload\n"
        "assert torch.cuda.is_available()\n"
        "sys.exit('s3prl.downstream.runner' not in sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_failing_job_ends_the_others_and_shows_its_last_lines(tmp_path):
    jobs = [
        job(tmp_path, "bad", "import time; time.sleep(1); raise ZeroDivisionError('of mine')"),
        job(tmp_path, "slow", "import os, time; print(os.getpid(), flush=True); time.sleep(300)"),
    ]
    started = time.monotonic()
    with pytest.raises(JobError, match=r"(?s)ZeroDivisionError: of mine\nbad ended with status 1; log: .*bad.txt"):
        run_jobs(jobs, at_a_time=2, threads=1, title="test")
    assert time.monotonic() - started < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "slow.txt").read_text().split()[-1]), 0)


def test_where_all_are_to_run_a_failure_is_told_at_the_end(tmp_path):
    jobs = [job(tmp_path, "bad", "raise ZeroDivisionError('of mine')"), job(tmp_path, "good", "print('fine')")]
    with pytest.raises(JobError, match=r"ZeroDivisionError: of mine\nbad ended with status 1; log: .*bad\.txt"):
        run_jobs(jobs, at_a_time=1, threads=1, title="test", keep_going=True)
    assert "fine" in (tmp_path / "good.txt").read_text()
    refused = job(tmp_path, "refused", "print('s3prl-ekd: error: of mine'); raise SystemExit(2)")
    with pytest.raises(UserError, match="of mine"):
        run_jobs([refused, job(tmp_path, "left", "")], at_a_time=1, threads=1, title="test", keep_going=True)
    assert not (tmp_path / "left.txt").exists()


def test_steps_are_read_off_the_log(tmp_path):
    log = tmp_path / "log.txt"
    assert steps_done(log) == 0
    log.write_text(
        "x\roverall:   2%|2  | 7/300 [00:01<00:44]\rtrain: 50%|#| 1/2\roverall:  10%|# | 30/300 [00:09<01:20]\rx" * 9
    )
    assert steps_done(log) == 30


def test_a_log_goes_on_but_only_its_last_part_speaks(tmp_path):
    say = "print('overall:   2%|2  | 7/300 [00:01<00:44]', '\\ns3prl-ekd: error: of mine'); raise SystemExit(2)"
    with pytest.raises(UserError, match="of mine"):
        run_jobs([job(tmp_path, "one", say)], at_a_time=1, threads=1, title="test")
    assert steps_done(tmp_path / "one.txt") == 7
    with pytest.raises(JobError, match="ended with status 2"):
        run_jobs([job(tmp_path, "one", "raise SystemExit(2)")], at_a_time=1, threads=1, title="test")
    assert steps_done(tmp_path / "one.txt") == 0
    assert "of mine" in (tmp_path / "one.txt").read_text()
