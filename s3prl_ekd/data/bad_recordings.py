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

    Attributes:
        read: recordings read so far in this process, good and bad.
        bad: how many of them were bad.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """``path``: the list, which may exist already (a resumed run) and be written by others; None: only log."""
        self.path = Path(path) if path is not None else None
        self.read = 0
        self.bad = 0
        self._listed: set[str] = set()
        self._offset = 0

    def note(self, read: int, bad: Iterable[tuple[str, str]]) -> None:
        """Count ``read`` recordings, of which ``bad`` (name, problem) could not be used.

        Raises:
            UserError: more than 1 % of at least 200 were bad.
        """
        bad = list(bad)
        self.read += read
        self.bad += len(bad)
        if bad:
            self._list(bad)
        if self.read >= JUDGED_FROM and self.bad > TOLERATED * self.read:
            last = f"; the last one: {bad[-1][1]}" if bad else ""
            raise UserError(f"{self.bad} of {self.read} recordings read cannot be used{self.hint}{last}")

    @property
    def hint(self) -> str:
        """Where to look, for messages."""
        return f" (listed in {self.path})" if self.path is not None and self.bad else ""

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
            fresh = [(name, problem) for name, problem in bad if _clean(name) not in self._listed]
            lines = "".join(f"{_clean(name)}\t{_clean(problem)}\n" for name, problem in fresh)
            if file.tell() == 0:
                lines = _HEADER + lines
            file.write(lines.encode())
            file.flush()
            self._offset = file.tell()
            self._listed.update(_clean(name) for name, _ in fresh)
        return fresh


def _clean(text: str) -> str:
    return " ".join(text.split())
