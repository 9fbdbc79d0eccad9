"""From rows to what is shown: a table per corpus and split, with the seeds of equal settings put together.

Only numbers and names here; text and Markdown are made at the end, pictures in :mod:`s3prl_ekd.superb.picture`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, zip_longest
from statistics import fmean, stdev
from typing import Any

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.superb.selection import best_on_dev, rate_of, searches
from s3prl_ekd.superb.summary import Row, canonical, distinct
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.task import RATE

UNKNOWN = "settings unknown"
"""Shown for results from a summary of format 1."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score less the baseline's on the same utterances, in percent."""

    baseline: str
    """The baseline's label."""
    value: float
    low: float
    """Where its 95 % interval begins."""
    high: float
    """Where it ends."""
    verdict: str
    """``better`` or ``worse`` where 0 is outside of the interval, or else empty."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The scores of one line on one test set, in percent."""

    mean: float
    """Over seeds."""
    seeds: int
    """How many seeds there are."""
    deviation: float | None
    """Standard deviation over seeds, of the sample (n - 1); None for one seed."""
    error: float | None
    """Standard error over the utterances of the only seed's score, if it is known."""
    interval: tuple[float, float] | None = None
    """The 95 % interval over utterances and seeds, where intervals were asked for."""
    difference: Difference | None = None
    """From the baseline, where there is one."""

    @property
    def mark(self) -> str:
        """▲ or ▼ where the interval of the difference says that the score is better or worse than the baseline's."""
        return _MARKS[self.difference.verdict] if self.difference else ""

    @property
    def text(self) -> str:
        """``58.5``, or ``52.3 ± 8.7 (n=2)`` for several seeds, or with its interval: ``52.3 [50.1, 54.4] ▲``."""
        if self.interval:
            low, high = self.interval
            return f"{self.mean:.1f} [{low:.1f}, {high:.1f}]{self.mark and f' {self.mark}'}"
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f} (n={self.seeds})"
        return f"{self.mean:.1f}{spread}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One test set."""

    task: str
    """One of :data:`~s3prl_ekd.tasks.TASKS`."""
    name: str
    """Task and test set, such as ``PR test-clean``; only the task where the set's name says no more."""
    chance: float
    """The best constant answer's score in percent."""
    cells: tuple[Cell | None, ...]
    """A cell per line; None: there is no result."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Runs that differ in nothing but the seed."""

    label: str
    """Name of what was judged."""
    settings: str
    """What tells it from the table's other lines; empty if nothing does."""
    steps: Mapping[str, str]
    """Task -> steps of the downstream training."""
    seeds: Mapping[str, str]
    """Task -> seeds of the downstream training, and how many, such as ``1, 2 (n=2)``."""
    rates: Mapping[str, str]
    """Task -> the learning rate, where it was chosen among several on the development set."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scores of one split: a line per label and settings, a column per test set, above them chance."""

    corpus: str
    """``mini`` or ``real``."""
    split: str
    """``public`` or ``hidden``."""
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: list[str]
    """What is written below the table: what all lines share, and how to read the figures."""

    @property
    def title(self) -> str:
        """Heading of the table."""
        return f"{self.corpus} corpus, {self.split} test sets (percent)"

    @property
    def names(self) -> list[str]:
        """Names of the lines: label, settings, and steps where lines differ in them."""
        steps_differ = _common([line.steps for line in self.lines]) is None
        named = []
        for line in self.lines:
            said = [line.settings] if line.settings else []
            said += [f"{_by_task(line.steps)} steps"] if steps_differ else []
            named.append(f"{line.label} ({'; '.join(said)})" if said else line.label)
        return named

    def rows(self) -> list[list[str]]:
        """Heading, chance and lines as text. Settings, steps and seeds have a column if lines differ in them."""
        columns = [["", "chance", *(line.label for line in self.lines)]]
        if len({line.settings for line in self.lines}) > 1:
            columns.append(["settings", "", *(line.settings for line in self.lines)])
        for name, heading in _BY_TASK.items():
            values = [getattr(line, name) for line in self.lines]
            if _common(values) is None:
                columns.append([heading, "", *map(_by_task, values)])
        for column in self.columns:
            task = TASKS[column.task]
            heading = f"{column.name} {task.metric} {'↑' if task.higher_is_better else '↓'}"
            scores = ["-" if cell is None else cell.text for cell in column.cells]
            columns.append([heading, f"{column.chance:.1f}", *scores])
        return [[" ".join(cell.split()) for cell in row] for row in zip(*columns, strict=True)]

    def text(self) -> str:
        """The table as text in aligned columns, words to the left and scores to the right."""
        rows = self.rows()
        words = len(rows[0]) - len(self.columns)
        widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = []
            for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
                gap = " " * (width - _width(cell))
                cells.append(cell + gap if number < words else gap + cell)
            lines.append("  ".join(cells).rstrip())
        return "\n".join([self.title, *lines, *self.notes])

    def markdown(self) -> str:
        """The table as Markdown."""
        heading, *rows = [[cell.replace("|", r"\|") for cell in row] for row in self.rows()]
        words = len(heading) - len(self.columns)
        bars = [*["---"] * words, *["---:"] * len(self.columns)]
        lines = [f"| {' | '.join(row)} |" for row in (heading, bars, *rows)]
        return "\n".join([f"**{self.title}**", "", *lines, "", *(f"- {note}" for note in self.notes)]).rstrip()

    def plain(self) -> dict[str, Any]:
        """All of it as plain values, for JSON; a cell is null where there is no result."""
        columns = [
            {
                "task": column.task,
                "name": column.name,
                "metric": TASKS[column.task].metric,
                "higher_is_better": TASKS[column.task].higher_is_better,
                "chance": column.chance,
            }
            for column in self.columns
        ]
        lines = [
            {**asdict(line), "cells": [cell and asdict(cell) for cell in cells]}
            for line, *cells in zip(self.lines, *(column.cells for column in self.columns), strict=True)
        ]
        return {
            "corpus": self.corpus,
            "split": self.split,
            "columns": columns,
            "lines": lines,
            "notes": self.notes,
        }


_BY_TASK = {"steps": "steps", "seeds": "seeds", "rates": "learning rate"}
"""Fields of a :class:`Line` by task -> what they are called."""
_MARKS = {"better": "▲", "worse": "▼", "": ""}


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
    return [_table_with_intervals(*one, baseline) if intervals or baseline else one[0] for one in made]


_Judged = list[list[Sequence[Row]]]
"""By column and line, the rows of a cell."""


def _table(corpus: str, split: str, every_row: Sequence[Row]) -> tuple[Table, _Judged]:
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
        )
        for label, tasks in found
    )
    made = list(_columns(rows, [tasks for _, tasks in found]))
    columns, judged = tuple(column for column, _ in made), [cells for _, cells in made]
    notes = [*_notes(lines, columns, every), *_edges(every_row)]
    return Table(corpus=corpus, split=split, columns=columns, lines=lines, notes=notes), judged


def _table_with_intervals(table: Table, judged: _Judged, baseline: str | None) -> Table:
    """The table with the interval of each score, and of its difference from the line whose label is ``baseline``."""
    base = [place for place, line in enumerate(table.lines) if line.label == baseline]
    if len(base) > 1:
        raise UserError(f"--baseline {baseline}: {len(base)} lines of a table are called so; report one of them")
    columns = tuple(
        _column_with_intervals(column, rows, table.lines, base[0] if base else None)
        for column, rows in zip(table.columns, judged, strict=True)
    )
    notes = [note for note in table.notes if note != _SPREAD]
    notes.append("[ ]: 95 % interval over utterances and seeds")
    if any(cell and cell.seeds == 1 for column in columns for cell in column.cells):
        notes.append("with one seed, an interval knows nothing of how trainings scatter")
    if base:
        notes.append(f"▲ better, ▼ worse than {baseline}: 0 is outside the 95 % interval of the difference")
    return replace(table, columns=columns, notes=notes)


def _column_with_intervals(
    column: Column, rows: Sequence[Sequence[Row]], lines: Sequence[Line], base: int | None
) -> Column:
    from s3prl_ekd.superb.intervals import draws, folds_of, interval  # numpy takes time

    places = [place for place, of_cell in enumerate(rows) if of_cell]
    # A name begins the drawing of seeds, so two lines must not have the same one.
    names = [" ".join(filter(None, (lines[place].label, lines[place].settings))) for place in places]
    drawn = dict(zip(places, draws([folds_of(rows[place]) for place in places], column.task, names), strict=True))
    cells = list(column.cells)
    for place, values in drawn.items():
        cell, reference = cells[place], cells[base] if base is not None else None
        assert cell is not None
        difference = None
        if base is not None and base != place and reference is not None:
            low, high = interval(values - drawn[base])
            difference = Difference(
                baseline=lines[base].label,
                value=cell.mean - reference.mean,
                low=low,
                high=high,
                verdict=_verdict(low, high, higher_is_better=TASKS[column.task].higher_is_better),
            )
        low, high = interval(values)
        most = 100.0 if TASKS[column.task].higher_is_better else max(high, 0.0)
        cells[place] = replace(cell, interval=(max(low, 0.0), min(high, most)), difference=difference)
    return replace(column, cells=tuple(cells))


def _verdict(low: float, high: float, *, higher_is_better: bool) -> str:
    if low <= 0 <= high:
        return ""
    return "better" if (low > 0) == higher_is_better else "worse"


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
    for name, heading in _BY_TASK.items():
        common = _common([getattr(line, name) for line in lines])
        if common:
            yield f"{heading} of the downstream training: {common}"
    if any(line.rates for line in lines):
        yield "the learning rate is the best one of those tried, on the development set"
    if any(cell and cell.deviation is not None for column in columns for cell in column.cells):
        yield _SPREAD
    if any(runs.unknown for runs in every):
        yield f"{UNKNOWN}: the summary is of an earlier version, which stored steps and seeds only"
    if any(runs.number for runs in every):
        yield "run 1, 2, ...: same seed and, as far as they are known, same settings, but other scores"


_SPREAD = "±: standard deviation over n seeds"


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


def _common(values: Sequence[Mapping[str, str]]) -> str | None:
    """What all lines share, as text; None if they differ. Tasks that only some lines have do not count."""
    every = {item for value in values for item in value.items()}
    merged = dict(every)
    return _by_task({task: merged[task] for task in TASKS if task in merged}) if len(merged) == len(every) else None


def _by_task(values: Mapping[str, str]) -> str:
    """``300``, or ``PR 300, SID 600`` where tasks differ."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{task.upper()} {text}" for task, text in values.items())


def _width(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
