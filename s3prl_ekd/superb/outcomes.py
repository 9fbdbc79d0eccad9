"""What became of each utterance of a test set, in ``outcomes.csv`` beside the score: errors and length, by name.

An error rate counts edits and the reference's tokens; where labels are judged, the length is 1 and an error is 1.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import atomic_path

OUTCOMES = "outcomes.csv"
_HEADING = ["utterance", "errors", "length"]

Outcomes = dict[str, tuple[int, int]]
"""Name of an utterance -> its errors and its length."""


def write_outcomes(path: Path, names: Iterable[str], errors: Sequence[int], lengths: Sequence[int]) -> None:
    """Write them, in the order of the test set, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_HEADING)
        writer.writerows(zip(_distinct(names), errors, lengths, strict=True))


def _distinct(names: Iterable[str]) -> Iterator[str]:
    """Names, of which some test sets have one twice (Speech Commands' files, in folders by word): the second is #2."""
    seen = Counter[str]()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"


def read_outcomes(path: Path) -> Outcomes:
    """The inverse of :func:`write_outcomes`.

    Raises:
        UserError: the file is missing or something else.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != _HEADING:
                raise ValueError(f"its first line is not {','.join(_HEADING)}")
            found = {name: (int(errors), int(length)) for name, errors, length in rows}
        if not found or min(length for _, length in found.values()) < 0 or not any(n for _, n in found.values()):
            raise ValueError("there is no utterance in it")
        return found
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; intervals need what became of each utterance") from error
    except ValueError as error:
        raise UserError(f"{path} is not the {OUTCOMES} of s3prl-ekd superb ({one_line(error)})") from error
