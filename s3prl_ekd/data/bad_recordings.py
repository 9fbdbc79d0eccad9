"""Recordings that cannot be used: skipped, listed once in a file that all ranks share, and counted."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

TOLERATED = 0.01
"""Share of the recordings read that may be bad."""
JUDGED_FROM = 200
"""Recordings read before the share means anything."""

_HEADER = "utterance\tproblem\n"


class BadRecordings:
    """Counts what a process has read and lists the bad ones.

    Args:
        path: the list, which may exist already (a resumed run) and be written by others; None: only log.
        alone: whether this process judges by itself; else :meth:`judge` is for the counts of all of them, which must
            stop together.

    Attributes:
        read: recordings read so far in this process, good and bad.
        bad: how many of them were bad.
    """

    def __init__(self, path: str | Path | None = None, *, alone: bool = True) -> None:
        self.path = Path(path) if path is not None else None
        self.alone = alone
        self.read = 0
        self.bad = 0
        self._listed: set[str] = set()
        self._offset = 0

    def note(self, read: int, bad: Iterable[tuple[str, str]]) -> None:
        """Count ``read`` recordings, of which ``bad`` (name, problem) could not be used.

        Raises:
            UserError: more than 1 % of at least 200 were bad, and this process is alone.
        """
        bad = list(bad)
        self.read += read
        self.bad += len(bad)
        if bad:
            self._list(bad)
        problem = self.judge(self.read, self.bad) if self.alone else None
        if problem is not None:
            raise UserError(f"{problem}; the last one: {bad[-1][1]}" if bad else problem)

    def judge(self, read: int, bad: int) -> str | None:
        """What to say where so many of so many recordings are too many; None where they are not."""
        if read < JUDGED_FROM or bad <= TOLERATED * read:
            return None
        return f"{bad} of {read} recordings read cannot be used{self._where}"

    @property
    def hint(self) -> str:
        """Where to look, for messages."""
        return self._where if self.bad else ""

    @property
    def _where(self) -> str:
        return f" (listed in {self.path})" if self.path is not None else ""

    def _list(self, bad: list[tuple[str, str]]) -> None:
        if self.path is None:
            fresh = [(name, problem) for name, problem in bad if name not in self._listed]
            self._listed.update(name for name, _ in fresh)
        else:
            fresh = self._append(bad)
        for _, problem in fresh:
            logger.warning("skipped: %s", problem)

    def _append(self, bad: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Add those that nobody has listed yet, and return them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._offset)  # what the other ranks have added since
            self._listed.update(line.split("\t")[0] for line in file.read().decode().splitlines())
            fresh = [(name, problem) for name, problem in bad if one_line(name) not in self._listed]
            lines = "".join(f"{one_line(name)}\t{one_line(problem)}\n" for name, problem in fresh)
            if file.tell() == 0:
                lines = _HEADER + lines
            file.write(lines.encode())
            file.flush()
            self._offset = file.tell()
            self._listed.update(one_line(name) for name, _ in fresh)
        return fresh


def one_line(text: str) -> str:
    """A name or problem as the list has it."""
    return " ".join(text.split())


def listed(path: Path) -> frozenset[str]:
    """The names in a list, as :func:`one_line` gives them; none where there is no list."""
    if not path.exists():
        return frozenset()
    return frozenset(line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:])
