"""Recordings that cannot be used: skipped, listed once in a file that all ranks share, and counted."""

from __future__ import annotations

import fcntl
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import NamedTuple

from s3prl_ekd.errors import UserError, one_line

logger = logging.getLogger(__name__)

TOLERATED = 0.01
"""Share of a corpus' recordings that may be bad."""
TOLERATED_RECENTLY = 0.1
"""Share of the last :data:`RECENT` recordings read that may have turned out bad for the first time."""
RECENT = 1000
"""How many recordings of each process count as recent."""
JUDGED_FROM = 200
"""Fewer recordings are too few to judge a share by."""

BAD_RECORDINGS = "bad_recordings.tsv"
"""Its name in the folder of a run or of a cache."""
_HEADER = "utterance\tproblem\n"


class SourceError(UserError):
    """What holds many recordings, such as a manifest or tar, cannot be used; that is more than one bad recording."""


class Counts(NamedTuple):
    """Numbers of recordings that one process has read; the sums over all processes are those of a run."""

    read: float = 0
    """In a pass over the corpus, in which each recording comes once."""
    bad: float = 0
    """In that pass, bad ones."""
    recent: float = 0
    """Most recently, at most :data:`RECENT`."""
    new: float = 0
    """Of the recent ones, those that were bad and not in the list before."""
    recent_bad: float = 0
    """Of the recent ones, all bad ones."""


class BadRecordings:
    """Counts what a process has read and lists the bad ones.

    Too many are judged in two ways. Over a *pass*, in which each recording comes once, so that one bad recording of a
    small corpus is not another one in each epoch; and over the recent ones, so that a long run notices when its storage
    goes.

    Args:
        path: the list, which may exist already (a resumed run) and be written by others; None: only log.
        alone: whether this process judges by itself. Several must stop together: whoever has summed their counts calls
            :meth:`judge`.

    Attributes:
        read: how often this process has read a recording, good or bad.
        bad: how often it was bad.
    """

    def __init__(self, path: str | Path | None = None, *, alone: bool = True) -> None:
        self.path = Path(path) if path is not None else None
        self.alone = alone
        self.read = 0
        self.bad = 0
        self._pass = self._pass_before = (0, 0)  # read and bad
        self._skipped = 0
        self._recent: deque[tuple[bool, bool]] = deque(maxlen=RECENT)  # whether it was bad, whether that was new
        self._recent_new = self._recent_bad = 0
        self._listed: set[str] = set()
        self._offset = 0

    def begin_pass(self) -> None:
        """A new pass over the corpus begins: the recordings to come have been read before."""
        if self._pass[0]:
            self._pass_before = self._pass
        self._pass, self._skipped = (self._skipped, 0), 0

    def skip(self, read: int) -> None:
        """Count so many recordings of the coming pass as good, since an earlier process has read them."""
        self._skipped = read

    def note(self, read: int, bad: Iterable[tuple[str, str]]) -> None:
        """Count ``read`` recordings, of which ``bad`` (name, problem) could not be used.

        Raises:
            UserError: too many were bad (see :meth:`judge`), and this process is alone.
        """
        bad = list(bad)
        self.read += read
        self.bad += len(bad)
        self._pass = (self._pass[0] + read, self._pass[1] + len(bad))
        new = self._list(bad) if bad else 0
        self._recent.extend([(False, False)] * min(read - len(bad), RECENT))
        self._recent.extend((True, number < new) for number in range(len(bad)))
        if bad or self._recent_bad:
            self._recent_bad = sum(is_bad for is_bad, _ in self._recent)
            self._recent_new = sum(is_new for _, is_new in self._recent)
        problem = self.judge(self.counts) if self.alone else None
        if problem is not None:
            raise UserError(f"{problem}; the last one: {bad[-1][1]}" if bad else problem)

    @property
    def counts(self) -> Counts:
        """The counts of this process.

        Of a pass that is not over, the part still to come is taken to have as many bad ones as in the pass before.
        """
        (read, bad), (read_before, bad_before) = self._pass, self._pass_before
        left = max(0.0, 1 - read / read_before) if read_before else 0.0
        return Counts(
            read=max(read, read_before),
            bad=bad + left * bad_before,
            recent=len(self._recent),
            new=self._recent_new,
            recent_bad=self._recent_bad,
        )

    def judge(self, counts: Counts) -> str | None:
        """What is wrong where too many are bad; None where they are not.

        Too many are more than 1 % of a pass (of at least 200 recordings), more than 10 % of the recent ones that were
        good or unknown before, or more than half of the recent ones.
        """
        if counts.read >= JUDGED_FROM and counts.bad > TOLERATED * counts.read:
            return f"{counts.bad:.0f} of {counts.read:.0f} recordings read cannot be used{self._where}"
        lost = counts.new > TOLERATED_RECENTLY * counts.recent or counts.recent_bad > counts.recent / 2
        if counts.recent >= JUDGED_FROM and lost:
            return (
                f"{counts.recent_bad:.0f} of the last {counts.recent:.0f} recordings read cannot be used{self._where};"
                " see whether their storage is still there"
            )
        return None

    @property
    def hint(self) -> str:
        """Where the bad recordings are listed, for messages; empty where there are none."""
        return self._where if self.bad else ""

    @property
    def _where(self) -> str:
        return f" (listed in {self.path})" if self.path is not None else ""

    def _list(self, bad: list[tuple[str, str]]) -> int:
        """Add recordings to the list; returns how many were not in it before."""
        lines = {one_line(name): problem for name, problem in bad}
        fresh = lines.keys() - self._listed if self.path is None else self._append(self.path, lines)
        self._listed.update(fresh)
        for name, problem in lines.items():
            if name in fresh:
                logger.warning("skipped: %s", problem)
        return len(fresh)

    def _append(self, path: Path, lines: Mapping[str, str]) -> Set[str]:
        """Add those to the list that no process has listed yet, and return their names."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._offset)  # what the other ranks have added since
            self._listed.update(line.split("\t")[0] for line in file.read().decode().splitlines())
            fresh = lines.keys() - self._listed
            text = "".join(f"{name}\t{one_line(problem)}\n" for name, problem in lines.items() if name in fresh)
            if file.tell() == 0:
                text = _HEADER + text
            file.write(text.encode())
            file.flush()
            self._offset = file.tell()
        return fresh


def listed(path: Path) -> frozenset[str]:
    """The names in a list, as :func:`~s3prl_ekd.errors.one_line` gives them; none where there is no list."""
    if not path.exists():
        return frozenset()
    return frozenset(line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:])
