"""The law, and one case under it: a forked process with little memory and time."""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fuzz.change import Change
from s3prl_ekd.errors import LONGEST_MESSAGE, UserError

MEMORY = 1 << 30
"""Bytes of address space that a case may add."""
CPU_SECONDS = 10
WALL_SECONDS = 120
"""Much more, as the machine may be busy."""

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


def try_case(kind: Kind, good: Path, place: Path, seed: int, number: int) -> Outcome:
    """One case in a process of its own; number 0 changes nothing.

    Args:
        kind: of what.
        good: what its ``prepare`` has written.
        place: a new folder for what the case writes.
        seed: of all cases.
        number: of this one.
    """
    place.mkdir(parents=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            outcome = _in_child(kind, good, place, random.Random(f"{seed}/{name_of(kind)}/{number}"), number == 0)
            os.write(writer, json.dumps(dataclasses.asdict(outcome)).encode()[:60_000])
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    return _awaited(child, reader)


def _awaited(child: int, reader: int) -> Outcome:
    with os.fdopen(reader, "rb") as pipe:
        ready, _, _ = select.select([pipe], [], [], WALL_SECONDS)
        if not ready:
            os.kill(child, signal.SIGKILL)
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if data:
        return Outcome(**json.loads(data))
    if not ready:
        return Outcome(BROKEN, f"did not end within {WALL_SECONDS} s")
    number = os.waitstatus_to_exitcode(status)
    ended = {-signal.SIGXCPU: f"took more than {CPU_SECONDS} s of CPU"}
    return Outcome(BROKEN, ended.get(number, f"the process ended with status {number}"))


def _in_child(kind: Kind, good: Path, place: Path, rng: random.Random, harmless: bool) -> Outcome:
    os.chdir(place)
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    change = Change(rng, harmless=harmless)
    work = kind.draw(good, change)
    before = _tree(place)
    _bound()
    start, resident = time.process_time(), _memory("VmRSS")
    outcome = _judged(work)
    outcome.seconds = round(time.process_time() - start, 3)
    outcome.mebibytes = round(max(0, _memory("VmHWM") - resident) / 1024, 1)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    outcome.notes = "; ".join(change.notes)[:600]
    left = _tree(place) - before
    if outcome.verdict == REFUSED and left:
        outcome.verdict, outcome.message = BROKEN, f"refused, but left {sorted(left)[:3]} ({outcome.message})"
    if any(".part" in name or ".old" in name for name in left):
        outcome.verdict, outcome.message = BROKEN, f"left {sorted(left)[:3]}"
    return outcome


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


def _bound() -> None:
    with contextlib.suppress(OSError):  # some systems do not let a process forget its peak
        Path("/proc/self/clear_refs").write_text("5")
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (space, hard))
    used = int(time.process_time()) + CPU_SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used, used + 5))


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
    keep: Callable[[int, Outcome], Any] = lambda number, outcome: None,
) -> dict[int, Outcome]:
    """Cases of a kind, by number.

    Args:
        kind: of what.
        folder: a scratch folder.
        seed: of all cases.
        numbers: of the cases.
        until: ``time.monotonic()`` at which to stop early.
        keep: told of each case before its folder ``case`` is removed.
    """
    good, place = folder / "good", folder / "case"
    good.mkdir(parents=True)
    kind.prepare(good)
    outcomes = {}
    for number in numbers:
        if time.monotonic() > until:
            break
        outcomes[number] = try_case(kind, good, place, seed, number)
        keep(number, outcomes[number])
        shutil.rmtree(place, ignore_errors=True)
    return outcomes
