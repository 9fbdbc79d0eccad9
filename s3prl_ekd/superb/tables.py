"""From rows to what is shown: a table per corpus and split, with the seeds of equal settings put together.

Only numbers and names here; what they look like is in :mod:`s3prl_ekd.superb.table`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from statistics import fmean, stdev
from typing import Any

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.superb.selection import best_on_dev, rate_of, searches
from s3prl_ekd.superb.summary import Row, canonical, distinct
from s3prl_ekd.superb.table import BY_TASK, SPREAD, Cell, Column, Line, Table, shared
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.task import RATE

__all__ = ["Table", "tables"]

UNKNOWN = "settings unknown"
"""Shown for results from a summary of format 1."""


def tables(
    rows: Iterable[Row], *, intervals: bool = False, baseline: str | None = None, every_rate: bool = False
) -> list[Table]:
    """One table per corpus and split. A run that is there twice counts once.

    Args:
        rows: the results.
        intervals: give each score its 95 % interval, see :mod:`s3prl_ekd.superb.intervals`.
        baseline: label of what the others are compared with; it asks for intervals, too.
        every_rate: a line for each learning rate that was tried, and not only for the best on the development set.

    Raises:
        UserError: the results have no outcomes per utterance, which intervals need; there is no such baseline.
    """
    rows = [replace(row, searched=False) if every_rate else row for row in rows]
    labels = {row.label for row in rows}
    if baseline is not None and baseline not in labels:
        raise UserError(f"--baseline {baseline}: no result has this label; {nearest(baseline, labels)}")

    def order(row: Row) -> tuple[str, bool, str]:
        return (row.corpus, row.split != "public", row.split)

    groups = groupby(sorted(distinct(rows), key=order), order)
    made = [_table(corpus, split, list(group)) for (corpus, _, split), group in groups]
    if not (intervals or baseline):
        return [table for table, _ in made]
    from s3prl_ekd.superb.comparison import with_intervals  # numpy takes time

    return [with_intervals(table, judged, baseline) for table, judged in made]


def _table(corpus: str, split: str, every_row: Sequence[Row]) -> tuple[Table, list[list[Sequence[Row]]]]:
    """The table, and by column and line the rows of a cell."""
    rows = best_on_dev(every_row)
    found = _lines(rows)
    every = [runs for _, tasks in found for runs in tasks.values()]
    differing = _differing(every)
    lines = tuple(
        Line(
            label=label,
            settings=_settings(tasks, differing),
            steps={task: str(runs.rows[0].steps) for task, runs in tasks.items()},
            seeds={task: runs.seeds for task, runs in tasks.items()},
            rates={task: f"{rate_of(runs.rows[0]):g}" for task, runs in tasks.items() if runs.rows[0].searched},
            costs=next((row.costs for runs in tasks.values() for row in runs.rows if row.costs), {}),
        )
        for label, tasks in found
    )
    made = list(_columns(rows, [tasks for _, tasks in found]))
    columns, judged = tuple(column for column, _ in made), [cells for _, cells in made]
    notes = [*_notes(lines, columns, every), *_edges(every_row)]
    return Table(corpus=corpus, split=split, columns=columns, lines=lines, notes=notes), judged


def _edges(rows: Sequence[Row]) -> Iterator[str]:
    """Where a learning rate that was not tried might be better."""
    found = [search.rates[search.best][0] for search in searches(rows) if search.at_the_edge]
    if found:
        named = ", ".join(f"{row.task.upper()} of {row.label} ({rate_of(row):g})" for row in found)
        yield f"the best learning rate is the lowest or highest of those tried: {named}"


def _columns(rows: Sequence[Row], lines: Sequence[Mapping[str, _Runs]]) -> Iterator[tuple[Column, list[Sequence[Row]]]]:
    order = list(TASKS)
    first: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: (order.index(row.task), row.test_set)):
        first.setdefault(_test_set(row), row)
    names = Counter((row.task, row.test_set) for row in first.values())
    for test_set, row in first.items():
        name = row.task.upper() if row.test_set in ("test", "hidden") else f"{row.task.upper()} {row.test_set}"
        if names[row.task, row.test_set] > 1:  # with other utterances
            name = f"{name} ({row.utterances} utterances, chance {row.chance:.6g})"
        judged = [tasks[row.task].rows if row.task in tasks else () for tasks in lines]
        of_cells: list[Sequence[Row]] = [[one for one in line if _test_set(one) == test_set] for line in judged]
        yield Column(task=row.task, name=name, chance=row.chance, cells=tuple(map(_cell, of_cells))), of_cells


def _test_set(row: Row) -> tuple[Any, ...]:
    """Identifies the utterances that were judged; with other references, chance is another one."""
    return (row.task, row.test_set, row.utterances, f"{row.chance:.6g}")


def _cell(rows: Sequence[Row]) -> Cell | None:
    """The cell of rows that differ in the seed only."""
    if not rows:
        return None
    scores = [row.value for row in rows]
    several = len(scores) > 1
    return Cell(
        mean=fmean(scores),
        seeds=len(scores),
        deviation=stdev(scores) if several else None,
        error=None if several else rows[0].value_error,
    )


def _notes(lines: Sequence[Line], columns: Iterable[Column], every: Sequence[_Runs]) -> Iterator[str]:
    for name, heading in BY_TASK.items():
        common = shared([getattr(line, name) for line in lines])
        if common:
            yield f"{heading} of the downstream training: {common}"
    if any(line.rates for line in lines):
        yield "the learning rate is the best one of those tried, on the development set"
    if any(cell and cell.deviation is not None for column in columns for cell in column.cells):
        yield SPREAD
    if any(runs.unknown for runs in every):
        yield f"{UNKNOWN}: the summary is of an earlier version, which stored steps and seeds only"
    if any(runs.number for runs in every):
        yield "run 1, 2, ...: same seed and, as far as they are known, same settings, but other scores"


# --- which rows are seeds of one thing -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """Rows of one label and task that differ in the seed only."""

    rows: tuple[Row, ...]
    number: int = 0
    """Above 0 for one of several runs with the same settings and the same seed."""

    @property
    def seeds(self) -> str:
        seeds = sorted({row.seed for row in self.rows})
        return f"{', '.join(map(str, seeds))} (n={len(seeds)})"

    @property
    def unknown(self) -> bool:
        return self.rows[0].settings is None

    @property
    def settings(self) -> dict[str, str]:
        """Settings by name, as they are shown, without the steps, which are shown apart."""
        row = self.rows[0]
        ckpt = f"{row.ckpt} ({row.weights[:8]})" if row.weights else row.ckpt
        own = {**row.identity, "ckpt": ckpt}
        elsewhere = {"steps", "runner.total_steps", *([RATE] if row.searched else [])}
        return {name: _shown(value) for name, value in own.items() if name not in elsewhere}

    def key(self, name: str) -> tuple[str, str]:
        """What a setting is compared within: the task, or the label if it is what the label stands for."""
        row = self.rows[0]
        return (row.label if name in ("upstream", "ckpt") else row.task, name)


def _lines(rows: Sequence[Row]) -> list[tuple[str, dict[str, _Runs]]]:
    """(label, task -> its runs): a line for each label and what it has for all tasks; where a task was trained with
    several settings, one for each of them."""
    lines: dict[tuple[str, str, int], dict[str, _Runs]] = {}
    for label in dict.fromkeys(row.label for row in rows):
        for task in TASKS:
            taken: Counter[str] = Counter()
            for runs in _runs([row for row in rows if (row.label, row.task) == (label, task)]):
                common = canonical(runs.rows[0].common)
                lines.setdefault((label, common, taken[common]), {})[task] = runs
                taken[common] += 1
    return [(label, runs) for (label, *_), runs in lines.items()]


def _runs(rows: Sequence[Row]) -> Iterator[_Runs]:
    """Rows of one label and task by their settings. Where a seed has two scores, something unknown differs: then no row
    is put together with another."""
    groups: dict[str, dict[tuple[Any, ...], list[Row]]] = {}
    for row in rows:
        groups.setdefault(canonical(row.identity), {}).setdefault(_test_set(row), []).append(row)
    for columns in groups.values():
        if all(len({row.seed for row in column}) == len(column) for column in columns.values()):
            yield _Runs(rows=tuple(row for column in columns.values() for row in column))
        else:
            for number, one in enumerate(zip_longest(*columns.values()), start=1):
                yield _Runs(rows=tuple(row for row in one if row), number=number)


# --- in what they differ ---------------------------------------------------------------------------------------------


def _differing(every: Sequence[_Runs]) -> set[tuple[str, str]]:
    """:meth:`_Runs.key` of the settings that have several values."""
    values: dict[tuple[str, str], set[str]] = {}
    names = {name for runs in every if not runs.unknown for name in runs.settings}
    for runs in every:
        own = runs.settings
        for name in own if runs.unknown else names:
            values.setdefault(runs.key(name), set()).add(own.get(name, "absent"))
    return {key for key, several in values.items() if len(several) > 1}


def _settings(line: Mapping[str, _Runs], differing: set[tuple[str, str]]) -> str:
    """``optimizer.lr=0.1``, or ``SID optimizer.lr=0.1`` where the line's other tasks have something else."""
    told: dict[str, list[str]] = {}
    for task, runs in line.items():
        own = [f"{name}={value}" for name, value in runs.settings.items() if runs.key(name) in differing]
        own += [UNKNOWN] if runs.unknown else []
        own += [f"run {runs.number}"] if runs.number else []
        for text in own:
            told.setdefault(text, []).append(task)
    return "; ".join(text if len(of) == len(line) else f"{' '.join(of).upper()} {text}" for text, of in told.items())


def _shown(value: Any) -> str:
    """A value as ``--set`` takes it; a checksum is shortened."""
    if isinstance(value, str):
        return value[:8] if re.fullmatch("[0-9a-f]{64}", value) else value
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list | tuple) else json.dumps(value)
