"""Processes of ours, a few at a time, behind one progress bar.

They are forked off a process that has imported torch and s3prl (multiprocessing's forkserver), since importing them
takes 5 to 6 seconds, longer than some of the jobs. The pools of concurrent.futures and joblib keep their processes for
the next job, which must not find what the last one left behind, and end none of them when another one has failed.
submitit's local jobs (:mod:`s3prl_ekd.superb.cluster`) start a new interpreter and a second one to look after it for
each job, all at once, and live on when the process that started them is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import multiprocessing
import os
import re
import runpy
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from s3prl_ekd.errors import EXIT_USER_ERROR, UserError
from s3prl_ekd.processes import die_with_parent

_ERROR_LINE = re.compile(r"^s3prl-ekd: error: (?P<message>.+)$", flags=re.MULTILINE)
# s3prl's runners count optimizer steps on a bar of this name.
_STEP = re.compile(r"overall:\s+\d+%\|[^|]*\|\s*(\d+)/\d+")
# A log goes on where an earlier start of the same job has ended; only what follows this line is of the last one.
_STARTED = re.compile(r"^=== started at .* ===$", flags=re.MULTILINE)

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
ENVIRONMENT = {
    **dict.fromkeys(THREADS, "1"),
    "TQDM_MININTERVAL": "1",  # logs stay small
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a process that has initialised CUDA cannot be forked
}
"""What libraries read when they are loaded."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: ``python -m MODULE ARGUMENTS``."""

    name: str
    """Unique; shown beside the bar."""
    module: str
    """What is run."""
    arguments: tuple[str, ...] = ()
    """Its command line."""
    log: Path
    """File that its output is appended to."""
    steps: int
    """Optimizer steps it will take."""
    after: tuple[str, ...] = ()
    """Names of jobs that must end before it starts."""
    results: tuple[Path, ...] = ()
    """Files that are there when it has ended well."""


class JobError(Exception):
    """A process ended with an error that is no :class:`UserError`; the message shows its last lines and its log."""


def run_jobs(jobs: Sequence[Job], *, at_a_time: int, threads: int, title: str, keep_going: bool = False) -> None:
    """Run all ``jobs``; at the first failure, or on an interrupt, end the others.

    They also end when this process is killed, by whatever signal.

    Args:
        jobs: what to run, in the order of preference.
        at_a_time: how many processes at a time.
        threads: arithmetic threads per process.
        title: name of the progress bar.
        keep_going: run the others to their end where one has failed, unless bad input was the reason, which would make
            them fail too. None of them may wait for another one then.

    Raises:
        UserError: a process ended because of bad input.
        JobError: a process failed otherwise.
    """
    waiting, ended, failures = list(jobs), set[str](), list[JobError]()
    running: dict[Job, BaseProcess] = {}
    bar = tqdm(total=sum(job.steps for job in jobs), desc=title, unit="step")
    shown = 0.0
    with bar, contextlib.ExitStack() as cleanup:
        cleanup.callback(lambda: _end(running))
        while waiting or running:
            for job in [job for job in waiting if ended.issuperset(job.after)][: at_a_time - len(running)]:
                waiting.remove(job)
                running[job] = _start(job, threads)
            for job, process in list(running.items()):
                status = process.exitcode
                if status is None:
                    continue
                del running[job]
                ended.add(job.name)
                if status != 0:
                    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                    failure = job_failure(job, how, bad_input=status == EXIT_USER_ERROR)
                    if not keep_going or not isinstance(failure, JobError):
                        raise failure
                    failures.append(failure)
                    continue
                bar.write(f"{job.name}: done ({job.log})", file=sys.stderr)
            if time.monotonic() - shown > (0.5 if sys.stderr.isatty() else 10.0):
                shown = time.monotonic()
                _show(bar, [job.steps for job in jobs if job.name in ended], running)
            if running:
                time.sleep(0.25)
        _show(bar, [job.steps for job in jobs], running)
    if failures:
        raise JobError("\n".join(map(str, failures)))


def steps_done(log: Path) -> int:
    """The last step of s3prl's bar in a log; 0 before the first."""
    return int((_STEP.findall(_tail(log)) or ["0"])[-1])


def _show(bar: tqdm[NoReturn], ended: Sequence[int], running: Iterable[Job]) -> None:
    steps = {job: min(job.steps, steps_done(job.log)) for job in running}
    bar.n = sum(ended) + sum(steps.values())
    bar.set_postfix_str(", ".join(f"{job.name} {count}/{job.steps}" for job, count in steps.items()))


def _start(job: Job, threads: int) -> BaseProcess:
    mark_start(job)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["s3prl_ekd.superb.preload"])
    process = context.Process(target=work, args=(job, threads, dict(os.environ)), name=job.name)
    process.start()
    return process


def mark_start(job: Job) -> None:
    """Begin a new part of its log."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as stream:
        blank = "\n" if stream.tell() else ""
        stream.write(f"{blank}=== started at {time.strftime('%Y-%m-%d %H:%M:%S')} ===\n")


def work(job: Job, threads: int, environment: Mapping[str, str]) -> None:
    """In the new process: be ``python -m MODULE``, its output in the log."""
    die_with_parent()
    os.environ.clear()
    os.environ.update({**environment, **ENVIRONMENT, **dict.fromkeys(THREADS, str(threads))})
    multiprocessing.set_start_method(None, force=True)  # not forkserver: a loader's workers need not import s3prl anew
    with job.log.open("ab") as log, open(os.devnull, "rb") as nothing:
        for stream, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(stream.fileno(), number)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    if torch := sys.modules.get("torch"):  # or else it will read the environment
        torch.set_num_threads(threads)
    sys.argv = [job.module, *job.arguments]
    try:
        runpy.run_module(job.module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not call them


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 16384))  # its end is enough
        text = stream.read().decode("utf-8", errors="replace").replace("\r", "\n")
        return _STARTED.split(text)[-1]
    return ""


def job_failure(job: Job, how: str, *, bad_input: bool) -> UserError | JobError:
    """What to say of a job that failed, by the end of its log.

    Args:
        job: the job.
        how: how it ended.
        bad_input: whether its last error line, if it has one, says why.
    """
    tail = _tail(job.log)
    said = _ERROR_LINE.findall(tail)
    if bad_input and said:
        return UserError(f"{said[-1]} ({job.name}, log: {job.log})")
    lines = [line for line in tail.splitlines() if line.strip()][-15:]
    return JobError("\n".join([*lines, f"{job.name} {how}; log: {job.log}"]))


def _end(running: Mapping[Job, BaseProcess]) -> None:
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.join(timeout=10)
        if process.exitcode is None:
            process.kill()
            process.join()
