"""Jobs through submitit: its local processes, and a SLURM of scripts; they are submitted once, and found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit
from helpers_models import TESTS
from helpers_processes import runs
from helpers_slurm import FakeSlurm

from s3prl_ekd import cli
from s3prl_ekd.errors import UserError
from s3prl_ekd.superb import cluster
from s3prl_ekd.superb.cluster import Cluster, Resources
from s3prl_ekd.superb.jobs import Job, JobError
from s3prl_ekd.superb.summary import read_summary


@pytest.fixture(autouse=True)
def _in_new_interpreters(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setitem(cluster._FILE_LAG, "slurm", 0.0)
    monkeypatch.setitem(cluster._POLL, "slurm", 0.2)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> FakeSlurm:
    forget()
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def forget() -> None:
    """What submitit knows of jobs, in this process; a new command knows nothing."""
    submitit.SlurmJob.watcher.clear()


def job(tmp_path: Path, name: str, code: str) -> Job:
    script, made = tmp_path / f"{name}.py", tmp_path / f"{name}.made"
    script.write_text(f"{code}\nfrom pathlib import Path; Path({str(made)!r}).touch()")
    log = tmp_path / name / "log.txt"
    return Job(name=name, module="helpers_processes", arguments=(str(script),), log=log, steps=1, results=(made,))


def open_cluster(tmp_path: Path, engine: str, **resources) -> Cluster:
    return Cluster(engine, tmp_path / "cluster", Resources(**{"at_a_time": 2, "gpus": 0, **resources}))


def interrupted(_: float) -> None:
    raise KeyboardInterrupt


BAD = "print('s3prl-ekd: error: of mine'); raise SystemExit(2)"
BROKEN = "import os; print('so far'); os.abort()"


@pytest.mark.parametrize("engine", ["local", "slurm"])
def test_all_run_and_failures_are_told_at_the_end(tmp_path, slurm, engine):
    jobs = [job(tmp_path, "bad", BAD), job(tmp_path, "broken", BROKEN), job(tmp_path, "good", "print('fine')")]
    with pytest.raises(JobError) as raised:
        open_cluster(tmp_path, engine).run(jobs, title="test")
    told = str(raised.value).splitlines()
    assert told[0] == f"of mine (bad, log: {jobs[0].log})"
    assert "so far" in told
    assert told[-1].startswith(f"broken has not finished ({engine} job ")
    assert [one.results[0].is_file() for one in jobs] == [False, False, True]
    assert jobs[2].log.read_text().splitlines()[1] == "fine"


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_local_jobs_run_a_few_at_a_time_and_end_with_ctrl_c(tmp_path, monkeypatch, handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        _interrupt_local_jobs(tmp_path, monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_local_jobs(tmp_path, monkeypatch):
    code = "import os, time; print('process', os.getpid(), flush=True); time.sleep(300)"
    jobs = [job(tmp_path, name, code) for name in ("one", "two")]

    def once_it_runs(seconds, sleep=time.sleep):
        sleep(seconds)
        if "process" in (jobs[0].log.read_text() if jobs[0].log.is_file() else ""):
            monkeypatch.setattr("s3prl_ekd.superb.cluster.time.sleep", sleep)
            raise KeyboardInterrupt

    monkeypatch.setattr("s3prl_ekd.superb.cluster.time.sleep", once_it_runs)
    with pytest.raises(KeyboardInterrupt):
        open_cluster(tmp_path, "local", at_a_time=1).run(jobs, title="test")
    assert not runs(int(jobs[0].log.read_text().split("process ")[1].split()[0]))
    assert not jobs[1].log.exists()
    assert open_cluster(tmp_path, "local").at_work == frozenset()


def test_what_is_preempted_is_queued_again(tmp_path, monkeypatch):
    """By the signal that SLURM sends before it takes a machine away."""
    first, told = tmp_path / "first", tmp_path / "told"
    code = f"""
import os, pathlib, time
first = pathlib.Path({str(first)!r})
if not first.exists():
    first.with_suffix(".part").write_text(str(os.getpid()))
    first.with_suffix(".part").rename(first)
    time.sleep(300)
"""
    one = job(tmp_path, "one", code)

    def once_it_runs(seconds, sleep=time.sleep):
        sleep(seconds)
        if first.is_file() and not told.exists():
            told.touch()
            os.kill(int(first.read_text()), signal.SIGUSR2)

    monkeypatch.setattr("s3prl_ekd.superb.cluster.time.sleep", once_it_runs)
    open_cluster(tmp_path, "local").run([one], title="test")
    assert one.log.read_text().count("started at") == 2


_RUN = """
from pathlib import Path
from test_cluster import job, open_cluster
open_cluster(Path(), "local").run([job(Path(), "one", Path("code").read_text())], title="test")
"""


def test_what_outlives_a_kill_is_waited_for_and_not_started_again(tmp_path):
    """submitit's local jobs do, on purpose."""
    go = tmp_path / "go"
    (tmp_path / "code").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(.05)"
    )
    path = os.pathsep.join((str(TESTS / "superb"), os.environ["PYTHONPATH"]))
    command = [sys.executable, "-c", _RUN.replace("Path()", f"Path({str(tmp_path)!r})")]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}) as parent:
        log, deadline = tmp_path / "one/log.txt", time.monotonic() + 240
        while not log.is_file():
            assert time.monotonic() < deadline
            assert parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    again = open_cluster(tmp_path, "local")
    assert again.at_work == {"one"}
    go.touch()
    again.run([job(tmp_path, "one", "")], title="test")
    assert (tmp_path / "one.made").is_file()
    assert log.read_text().count("started at") == 1


def test_slurm_goes_on_without_us_and_the_next_command_waits_for_its_jobs(tmp_path, slurm, monkeypatch):
    jobs = [job(tmp_path, name, "print('fine')") for name in ("one", "two")]
    slurm.hold()
    resources = {"partition": "gpu", "gpus": 1, "hours": 1.5, "memory": 8, "threads": 2, "slurm": {"account": "me"}}
    said = r"the jobs go on .*\(scancel 11 ends them\); the same command waits"
    with monkeypatch.context() as patch:
        patch.setattr("s3prl_ekd.superb.cluster.time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt, match=said):
            open_cluster(tmp_path, "slurm", **resources).run(jobs, title="test")
    (script,) = slurm.scripts
    for option in ("partition=gpu", "gpus-per-node=1", "time=90", "mem=8GB", "cpus-per-task=2", "account=me",
                   "array=0-1%2"):  # fmt: skip
        assert f"#SBATCH --{option}\n" in script
    again = open_cluster(tmp_path, "slurm")
    assert again.at_work == {"one", "two"}
    slurm.hold(False)
    again.run([*jobs, job(tmp_path, "three", "print('fine')")], title="test")
    assert len(slurm.scripts) == 2  # the third, alone
    assert all((tmp_path / f"{name}.made").is_file() for name in ("one", "two", "three"))
    assert open_cluster(tmp_path, "slurm").at_work == frozenset()


def test_what_accounting_has_lost_is_submitted_again(tmp_path, slurm, monkeypatch):
    one = job(tmp_path, "one", "print('fine')")
    slurm.hold()
    with monkeypatch.context() as patch:
        patch.setattr("s3prl_ekd.superb.cluster.time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_cluster(tmp_path, "slurm").run([one], title="test")
    (slurm.root / "11.state").unlink()
    forget()
    assert open_cluster(tmp_path, "slurm").at_work == {"one"}  # which it may not know yet
    monkeypatch.setattr(cluster, "_UNSEEN", 0.0)
    assert open_cluster(tmp_path, "slurm").at_work == frozenset()
    slurm.hold(False)


def test_what_slurm_refuses_is_one_line(tmp_path, slurm):
    with pytest.raises(UserError, match=r"slurm: the jobs were refused: .*invalid partition specified: nowhere"):
        open_cluster(tmp_path, "slurm", partition="nowhere").run([job(tmp_path, "one", "")], title="test")


def test_a_machine_without_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--cluster slurm: this machine has no srun"):
        open_cluster(tmp_path, "slurm")


def test_a_worker_of_a_data_loader_queues_nothing(tmp_path):
    unit = cluster.Unit(job=job(tmp_path, "one", ""), threads=1, environment={})
    unit._process = os.getpid()
    assert unit.checkpoint().function is unit
    unit._process = 1
    assert unit.checkpoint() is None


@pytest.mark.slow
def test_the_same_grid_on_slurm_and_here(corpus, tmp_path, slurm, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"{{upstream: fbank, tasks: er, lr: 1e-3, seeds: 2, corpus: mini, data: {corpus}, out: {tmp_path / 'out'},"
        " steps: {er: 2}, device: cpu, cluster: slurm, partition: cpu, hours: 1}"
    )
    assert cli.main(["superb", "--grid", str(grid)]) == 0
    assert len(slurm.scripts) == 1
    rows = read_summary(tmp_path / "out")
    assert [row.seed for row in rows] == [1337, 1338]
    assert all(row.dev is not None and Path(row.outcomes[0]).is_file() for row in rows)
    assert cli.main(["superb", "--grid", str(grid), "--cluster", "local"]) == 0
    assert len(slurm.scripts) == 1  # nothing was left to do
    assert "95 % interval" in capsys.readouterr().out
