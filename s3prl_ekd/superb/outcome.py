"""The score of one evaluation: what s3prl's runner printed, checked against the answers it wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from s3prl_ekd.errors import UserError
from s3prl_ekd.tasks.scores import Outcome
from s3prl_ekd.tasks.task import Task

TOLERANCE = 0.01
"""Percent by which the printed score may differ from the one computed anew from the answers."""


def read_outcome(task: Task, folder: Path, output: str) -> Outcome:
    """The score of an evaluation that left its answers in ``folder`` and printed ``output``.

    Raises:
        UserError: no score was printed, or it is not that of the answers.
    """
    printed = re.findall(rf"^{re.escape(task.printed)}: (\S+)$", output, flags=re.MULTILINE)
    if not printed:
        raise UserError(f"{folder}: s3prl's runner printed no '{task.printed}'")
    answers, references = (_column(folder, pattern, task.separator) for pattern in task.answers)
    value = task.scale * float(printed[-1])
    outcome = task.score(answers, references)
    if not abs(value - outcome.value) <= TOLERANCE:
        raise UserError(f"{folder}: s3prl's runner printed {value:.3f} % but its answers score {outcome.value:.3f} %")
    return replace(outcome, value=value)


def _column(folder: Path, pattern: str, separator: str) -> list[str]:
    """What follows the utterance's name on each line of the one file that fits ``pattern``."""
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise UserError(f"{folder}: expected one file {pattern}, found {len(paths)}")
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    return [line.partition(separator)[2].strip() for line in lines]
