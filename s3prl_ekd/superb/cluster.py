"""Experiments as jobs of a cluster, through submitit: SLURM's arrays, or processes of this machine to rehearse with.

An experiment's folder says what is done and what is not, wherever it is done, so that a job of which nothing is known
any more can be submitted again: what is finished is left alone, and where another one is at work a job ends at once. A
job that is preempted or runs out of its time is queued again by submitit, and goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import write_json
from s3prl_ekd.superb.jobs import Job, JobError, job_failure, mark_start, steps_done, work

ENGINES = ("slurm", "local")
SUBMITTED = "submitted.json"
_LARGEST_ARRAY = 1000  # SLURM's own limit (MaxArraySize) is 1001 where nobody has raised it
_UNSEEN = 300.0  # seconds until SLURM's accounting must know a job
_FILE_LAG = {"slurm": 20.0, "local": 0.0}  # seconds until files of another machine are seen at the latest
_POLL = {"slurm": 5.0, "local": 0.25}  # seconds; what is asked are file systems that others use too
_GPUS = "CUDA_VISIBLE_DEVICES"
_DONE_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each job gets; None: what the cluster gives by itself."""

    partition: str | None = None
    gpus: int | None = None
    hours: float = 24.0
    """After so many a job is queued again, three times at most."""
    memory: float | None = None
    """GiB."""
    threads: int = 1
    """CPU cores, and arithmetic threads."""
    at_a_time: int = 256
    """How many jobs run at the same time."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """More options of sbatch, such as ``account``."""


@dataclass(kw_only=True)
class Unit:
    """A job as submitit stores it for the machine that will run it. It is called there."""

    job: Job
    threads: int
    environment: Mapping[str, str | None]
    """Variables that must be as here; None: not set."""

    def __call__(self) -> None:
        """Run the job, its output in its log; the process ends with its status."""
        self._process = os.getpid()
        mark_start(self.job)
        variables = {**os.environ, **self.environment}
        try:
            work(self.job, self.threads, {name: value for name, value in variables.items() if value is not None})
        except SystemExit as end:
            if end.code not in (0, None):
                raise

    def checkpoint(self) -> Any:
        """What submitit queues when the machine is about to be taken away: the same job, which goes on.

        SLURM signals a data loader's workers too, and they must not queue anything.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self) if os.getpid() == self._process else None


class Cluster:
    """Jobs on a cluster, submitted from here or by an earlier command.

    Nothing of what submitit pickles is loaded here: how a job has ended is read from its folder.

    Args:
        engine: one of :data:`ENGINES`.
        folder: for what submitit writes, and the list of what was submitted; all machines must see it.
        resources: what each job gets.

    Raises:
        UserError: submitit is not installed, or this machine has no SLURM.
    """

    def __init__(self, engine: str, folder: Path, resources: Resources) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--cluster needs submitit: pip install submitit") from error
        if engine == "slurm" and submitit.SlurmExecutor.affinity() <= 0:
            raise UserError(
                "--cluster slurm: this machine has no srun; call it where jobs are submitted, or give --cluster local"
            )
        self._engine, self._folder, self._resources = engine, folder, resources
        self._jobs: dict[str, Any] = {}  # submitit's, by our names
        self._since: dict[str, float] = {}  # when they were submitted
        self._ended: dict[str, float] = {}  # when they were first seen to have ended

    @functools.cached_property
    def at_work(self) -> frozenset[str]:
        """Names of the jobs of an earlier command that wait or run now."""
        path = self._folder / SUBMITTED
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            for name, record in json.loads(path.read_text(encoding="utf-8")).items():
                job = self._job_class(folder=self._folder, job_id=record["id"])
                if record["engine"] == self._engine and self._is_at_work(job, record["at"]):
                    self._jobs[name], self._since[name] = job, record["at"]
        return frozenset(self._jobs)

    @property
    def _job_class(self) -> Any:
        import submitit

        return submitit.SlurmJob if self._engine == "slurm" else submitit.LocalJob

    def _is_at_work(self, job: Any, since: float) -> bool:
        if self._engine == "local":
            return _is_controller(int(job.job_id))
        if job.done(force_check=True):
            return False
        return job.state != "UNKNOWN" or time.time() - since < _UNSEEN

    def run(self, jobs: Sequence[Job], *, title: str) -> None:
        """Submit what is not at work yet, and wait for the end of all.

        Raises:
            UserError: the cluster refuses the jobs.
            JobError: some failed.
            KeyboardInterrupt: its text says what has become of the jobs.
        """
        queued = [job for job in jobs if job.name not in self.at_work]
        waiting = {job.name: job for job in jobs if job.name in self.at_work}
        failures: dict[str, str] = {}
        shown = -math.inf
        try:
            with tqdm(total=sum(job.steps for job in jobs), desc=title, unit="step") as bar:
                while queued or waiting:
                    batch = queued[: self._room(waiting)]
                    if batch:
                        del queued[: len(batch)]
                        self._submit(batch)
                        waiting |= {job.name: job for job in batch}
                    for job in [job for job in waiting.values() if self._has_ended(job)]:
                        del waiting[job.name]
                        if not _is_done(job):
                            failures[job.name] = self._failure(job)
                        end = "failed" if job.name in failures else "done"
                        bar.write(f"{job.name}: {end} ({job.log})", file=sys.stderr)
                    if time.monotonic() - shown > 10 or not (queued or waiting):
                        shown = time.monotonic()
                        _show(bar, jobs, queued, waiting)
                    if queued or waiting:
                        time.sleep(_POLL[self._engine])
        except KeyboardInterrupt:
            self._leave(waiting)
        if failures:
            raise JobError("\n".join(failures[job.name] for job in jobs if job.name in failures))

    def _room(self, waiting: Mapping[str, Job]) -> int:
        """How many jobs may be submitted now. SLURM itself keeps to ``at_a_time``, submitit's local jobs all start."""
        return _LARGEST_ARRAY if self._engine == "slurm" else max(0, self._resources.at_a_time - len(waiting))

    @functools.cached_property
    def _executor(self) -> Any:
        import submitit

        own = self._resources
        executor = submitit.AutoExecutor(folder=self._folder, cluster=self._engine)
        executor.update_parameters(
            name="superb",
            nodes=1,
            tasks_per_node=1,
            cpus_per_task=own.threads,
            gpus_per_node=own.gpus,
            mem_gb=own.memory,
            timeout_min=max(1, round(60 * own.hours)),
            slurm_partition=own.partition,
            slurm_array_parallelism=own.at_a_time,
            slurm_additional_parameters=dict(own.slurm),
        )
        return executor

    def _submit(self, batch: Sequence[Job]) -> None:
        units = [Unit(job=job, threads=self._resources.threads, environment=self._kept) for job in batch]
        try:
            with _interruptible(), self._executor.batch():
                submitted = [self._executor.submit(unit) for unit in units]
        except Exception as error:  # submitit's own, whose base is RuntimeError, or of the missing command
            raise UserError(f"--cluster {self._engine}: the jobs were refused: {one_line(error, 400)}") from error
        now = time.time()
        for job, one in zip(batch, submitted, strict=True):
            self._jobs[job.name], self._since[job.name] = one, now
        record = {
            name: {"engine": self._engine, "id": str(one.job_id), "at": self._since[name]}
            for name, one in self._jobs.items()
        }
        write_json(self._folder / SUBMITTED, record)

    @property
    def _kept(self) -> dict[str, str | None]:
        """Local jobs see the GPUs as without submitit, which would let them see none but those that are asked for."""
        local = self._engine == "local" and self._resources.gpus is None
        return {_GPUS: os.environ.get(_GPUS)} if local else {}

    def _has_ended(self, job: Job) -> bool:
        submitted = self._jobs[job.name]
        if self._engine == "local" and job.name in self.at_work:
            return not _is_controller(int(submitted.job_id))  # another process's child
        if not submitted.done():
            return False
        since = self._ended.setdefault(job.name, time.monotonic())
        return _is_done(job) or time.monotonic() - since >= _FILE_LAG[self._engine]

    def _failure(self, job: Job) -> str:
        submitted = self._jobs[job.name]
        how = f"has not finished ({self._engine} job {submitted.job_id}: {submitted.state})"
        if job.log.is_file():
            return str(job_failure(job, how, bad_input=True))
        error = submitted.paths.stderr  # nothing of ours was reached
        with contextlib.suppress(OSError):
            print(*error.read_text(errors="replace").splitlines()[-_DONE_LINES:], sep="\n", file=sys.stderr)
        return f"{job.name} {how}; log: {error}"

    def _leave(self, waiting: Mapping[str, Job]) -> NoReturn:
        """End the processes of this machine; SLURM's jobs do not need us."""
        if self._engine == "slurm":
            numbers = sorted({str(self._jobs[name].job_id).split("_")[0] for name in waiting})
            raise KeyboardInterrupt(
                f"the jobs go on without this command (scancel {' '.join(numbers)} ends them); the same command waits"
                " for them"
            )
        for name in waiting:
            with contextlib.suppress(OSError):
                self._jobs[name].cancel(check=False)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all(self._has_ended(job) for job in waiting.values()):
            time.sleep(0.1)
        raise KeyboardInterrupt


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Processes started inside can be ended by SIGINT, which is how submitit ends a local job: where a script has
    started this command in the background, they would inherit that SIGINT is ignored."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_done(job: Job) -> bool:
    return all(path.is_file() for path in job.results)


def _show(bar: tqdm[NoReturn], jobs: Sequence[Job], queued: Sequence[Job], waiting: Mapping[str, Job]) -> None:
    open_ones = {job.name for job in queued} | waiting.keys()
    started = {name: min(job.steps, steps_done(job.log)) for name, job in waiting.items() if job.log.is_file()}
    bar.n = sum(job.steps for job in jobs if job.name not in open_ones) + sum(started.values())
    waits = len(open_ones) - len(started)
    bar.set_postfix_str(f"{len(jobs) - len(open_ones)} ended, {len(started)} running, {waits} waiting")


def _is_controller(pid: int) -> bool:
    """Whether this process is still the one of submitit that looks after a local job."""
    with contextlib.suppress(OSError):
        return b"submitit.local._local" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
