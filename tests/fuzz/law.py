"""The law, and cases under it: some at a time in a forked process, each with little memory and time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from fuzz.change import Change
from s3prl_ekd.errors import LONGEST_MESSAGE, UserError

MEMORY = 1 << 30
"""Bytes of address space that a case may add."""
CPU_SECONDS = 10
WALL_SECONDS = 120
"""Much more, as the machine may be busy."""
_BATCH = 25  # cases of one process, as forking one that has torch takes longer than most cases

WORKS, REFUSED, BROKEN = "works", "refused", "broken"


class BrokenError(Exception):
    """What was accepted does not work after all."""


class Kind(Protocol):
    """One file of :mod:`fuzz.kinds`."""

    ABOUT: str
    """What is tried, for the table."""

    def prepare(self, good: Path) -> None:
        """Write good input, once."""

    def draw(self, good: Path, change: Change) -> Callable[[], object]:
        """Write changed input into the current folder; what to do with it comes back.

        Good input lies in the folder ``good``, which stays as it is.
        """


@dataclasses.dataclass
class Outcome:
    """What came of a case.

    Attributes:
        verdict: works, refused or broken.
        message: what was said, or what broke.
        seconds: of CPU time.
        mebibytes: resident memory that it added at its peak.
        notes: what was done to the input.
    """

    verdict: str
    message: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0
    notes: str = ""


def name_of(kind: Kind) -> str:
    return kind.__name__.rpartition(".")[2]


def _batch(kind: Kind, good: Path, place: Path, seed: int, numbers: range) -> Iterator[tuple[int, Outcome]]:
    """Cases in one forked process, up to the first that ends it; each has the folder of its number below ``place``."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _in_child(kind, good, place, seed, numbers, writer)
        finally:
            os._exit(1)
    os.close(writer)
    lines = _Lines(reader)
    try:
        for number in numbers:
            line = lines.next(WALL_SECONDS)
            if line is None:
                ended, status = os.waitpid(child, os.WNOHANG if lines.open else 0)
                child = child if ended == 0 else 0
                yield number, Outcome(BROKEN, _how_it_ended(ended, status))
                return
            yield number, Outcome(**json.loads(line))
    finally:
        os.close(reader)
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class _Lines:
    """Lines from a pipe, each awaited for a limited time."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.open = True
        self._rest = b""

    def next(self, seconds: float) -> bytes | None:
        """The next line; None if there is none in time, or (no longer ``open``) at all."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.handle], [], [], seconds)
            data = os.read(self.handle, 1 << 16) if ready else b""
            if not data:
                self.open = not ready
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _how_it_ended(ended: int, status: int) -> str:
    if not ended:
        return f"did not end within {WALL_SECONDS} s"
    number = os.waitstatus_to_exitcode(status)
    if number == -signal.SIGXCPU:
        return f"took more than {CPU_SECONDS} s of CPU"
    return f"the process ended with status {number}"


def _in_child(kind: Kind, good: Path, place: Path, seed: int, numbers: range, writer: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    for number in numbers:
        folder = place / str(number)
        folder.mkdir(parents=True)
        os.chdir(folder)
        change = Change(random.Random(f"{seed}/{name_of(kind)}/{number}"), harmless=number == 0)
        try:
            outcome = _tried(kind.draw(good, change), folder)
        except Exception as error:
            outcome = Outcome(BROKEN, f"could not be drawn: {type(error).__name__}: {error}"[:300])
        outcome.notes = "; ".join(change.notes)[:600]
        os.write(writer, json.dumps(dataclasses.asdict(outcome)).encode() + b"\n")


def _tried(work: Callable[[], object], folder: Path) -> Outcome:
    before = _tree(folder)
    start, resident = time.process_time(), _memory("VmRSS")
    with _bounds():
        outcome = _judged(work)
    outcome.seconds = round(time.process_time() - start, 3)
    outcome.mebibytes = round(max(0, _memory("VmHWM") - resident) / 1024, 1)
    left = _tree(folder) - before
    if outcome.verdict == REFUSED and left:
        outcome = dataclasses.replace(
            outcome, verdict=BROKEN, message=f"refused, but left {sorted(left)[:3]} ({outcome.message})"
        )
    if any(".part" in name or ".old" in name for name in left):
        outcome = dataclasses.replace(outcome, verdict=BROKEN, message=f"left {sorted(left)[:3]}")
    return outcome


@contextlib.contextmanager
def _bounds() -> Iterator[None]:
    """Little memory and time; the peak of memory is counted from here."""
    with contextlib.suppress(OSError):  # some systems do not let a process forget its peak
        Path("/proc/self/clear_refs").write_text("5")
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    limits = {resource.RLIMIT_AS: space, resource.RLIMIT_CPU: int(time.process_time()) + CPU_SECONDS + 1}
    hard = {which: resource.getrlimit(which)[1] for which in limits}
    for which, limit in limits.items():
        resource.setrlimit(which, (limit, hard[which]))
    try:
        yield
    finally:
        for which in limits:
            resource.setrlimit(which, (hard[which], hard[which]))


def _judged(work: Callable[[], object]) -> Outcome:
    try:
        work()
    except UserError as error:
        said = str(error)
        if not said.isprintable() or len(said) > LONGEST_MESSAGE or not said.strip():
            return Outcome(BROKEN, f"not one printable line of bounded length: {said[:300]!r}")
        return Outcome(REFUSED, said)
    except BaseException as error:
        where = _where(error)
        return Outcome(BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})")
    return Outcome(WORKS)


def _where(error: BaseException) -> str:
    """The last place in the package that an error came through."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "s3prl_ekd" in file:
            place = f"{file.rpartition('s3prl_ekd/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _memory(key: str) -> int:
    """kB that the system counts for this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0])


def run(
    kind: Kind,
    folder: Path,
    *,
    seed: int,
    numbers: range,
    until: float = float("inf"),
    keep: Callable[[int, Outcome, Path], Any] = lambda number, outcome, folder: None,
) -> dict[int, Outcome]:
    """Cases of a kind, by number.

    Args:
        kind: of what.
        folder: a scratch folder.
        seed: of all cases.
        numbers: of the cases.
        until: ``time.monotonic()`` at which to stop early.
        keep: told of each case and its folder before that is removed.
    """
    good, place = folder / "good", folder / "cases"
    good.mkdir(parents=True)
    kind.prepare(good)
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(numbers) and time.monotonic() < until:
        batch = numbers[len(outcomes) : len(outcomes) + _BATCH]
        for number, outcome in _batch(kind, good, place, seed, batch):
            outcomes[number] = outcome
            keep(number, outcome, place / str(number))
        shutil.rmtree(place, ignore_errors=True)
    return outcomes
