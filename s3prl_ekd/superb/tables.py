"""From rows to what is shown: a table per corpus and split, with the seeds of equal settings put together.

Only numbers and names here; text and Markdown are made at the end, pictures in :mod:`s3prl_ekd.superb.picture`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from s3prl_ekd.superb.summary import Row, canonical, distinct
from s3prl_ekd.tasks import TASKS

CHANCE = "chance"
"""Label of a table's first line, the best constant answer's scores."""
UNKNOWN = "settings unknown"
"""Shown for results from a summary of format 1."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One test set."""

    task: str
    """One of :data:`~s3prl_ekd.tasks.TASKS`."""
    test_set: str
    """Its name in the results."""
    utterances: int
    """Its size."""
    chance: float
    """The best constant answer's score in percent."""
    twins: bool = False
    """Whether the table has another test set of this task and name, with other utterances in it."""

    @property
    def name(self) -> str:
        """Task and test set, such as ``PR test-clean``; only the task where the set's name says no more."""
        name = self.task.upper() if self.test_set in ("test", "hidden") else f"{self.task.upper()} {self.test_set}"
        return f"{name} ({self.utterances} utterances, chance {self.chance:.6g})" if self.twins else name

    @property
    def heading(self) -> str:
        """``PR test-clean PER ↓``; the arrow shows where better is."""
        task = TASKS[self.task]
        return f"{self.name} {task.metric} {'↑' if task.higher_is_better else '↓'}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The scores of one line on one test set."""

    scores: Mapping[int, float]
    """Seed -> percent."""
    error: float | None = None
    """Standard error over the utterances of the only seed's score, if it is known."""

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.scores.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds, of the sample (n - 1); None for one seed."""
        return stdev(self.scores.values()) if self.seeds > 1 else None

    @property
    def text(self) -> str:
        """``58.5``, or ``52.3 ± 8.7 (n=2)`` for several seeds."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f} (n={self.seeds})"
        return f"{self.mean:.1f}{spread}"


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
    cells: tuple[Cell | None, ...]
    """A cell per column; None: there is no result."""
    unknown: bool = False
    """Whether the settings are not known."""
    repeated: bool = False
    """Whether there are several runs of this seed with these settings, and other scores."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scores of one split: a line per label and settings, a column per test set, above them chance."""

    corpus: str
    """``mini`` or ``real``."""
    split: str
    """``public`` or ``hidden``."""
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """Heading of the table."""
        return f"{self.corpus} corpus, {self.split} test sets (percent)"

    @property
    def notes(self) -> list[str]:
        """What is written below the table: what all lines share, and how to read the figures."""
        common = ((name, _common([getattr(line, name) for line in self.lines])) for name in ("steps", "seeds"))
        said = [f"{name} of the downstream training: {value}" for name, value in common if value is not None]
        if any(cell and cell.deviation is not None for line in self.lines for cell in line.cells):
            said.append("±: standard deviation over n seeds")
        if any(line.unknown for line in self.lines):
            said.append(f"{UNKNOWN}: the summary is of an earlier version, which stored steps and seeds only")
        if any(line.repeated for line in self.lines):
            said.append("run 1, 2, ...: same seed and, as far as they are known, same settings, but other scores")
        return said

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
        extra = [
            (name, [_by_task(value) if isinstance(value, Mapping) else value for value in values])
            for name in ("settings", "steps", "seeds")
            if (values := [getattr(line, name) for line in self.lines]) and _common(values) is None
        ]
        rows = [["", *(name for name, _ in extra), *(column.heading for column in self.columns)]]
        rows.append([CHANCE, *("" for _ in extra), *(f"{column.chance:.1f}" for column in self.columns)])
        for number, line in enumerate(self.lines):
            cells = ["-" if cell is None else cell.text for cell in line.cells]
            rows.append([line.label, *(values[number] for _, values in extra), *cells])
        return [[" ".join(cell.split()) for cell in row] for row in rows]

    def text(self) -> str:
        """The table as text in aligned columns."""
        rows = self.rows()
        words = len(rows[0]) - len(self.columns)
        widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            room = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
            cells = [cell + gap for cell, gap in zip(row[:words], room[:words], strict=True)]
            cells += [gap + cell for cell, gap in zip(row[words:], room[words:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([self.title, *lines, *self.notes])

    def markdown(self) -> str:
        """The table as Markdown."""
        heading, *rows = [[cell.replace("|", r"\|") for cell in row] for row in self.rows()]
        words = len(heading) - len(self.columns)
        bars = [*["---"] * words, *["---:"] * len(self.columns)]
        lines = [f"| {' | '.join(row)} |" for row in (heading, bars, *rows)]
        return "\n".join([f"**{self.title}**", "", *lines, "", *(f"- {note}" for note in self.notes)]).rstrip()


def tables(rows: Iterable[Row]) -> list[Table]:
    """One table per corpus and split. A run that is there twice counts once."""
    rows = distinct(rows)
    groups = dict.fromkeys((row.corpus, row.split) for row in rows)
    order = sorted(groups, key=lambda group: (group[0], group[1] != "public", group[1]))
    return [_table(*group, [row for row in rows if (row.corpus, row.split) == group]) for group in order]


def _table(corpus: str, split: str, rows: Sequence[Row]) -> Table:
    order = list(TASKS)
    columns: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: (order.index(row.task), row.test_set)):
        columns.setdefault(_column(row), row)
    names = Counter((row.task, row.test_set) for row in columns.values())
    found = _lines(rows)
    differing = _differing([runs for _, tasks in found for runs in tasks.values()])
    lines = []
    for label, tasks in found:
        own = [row for runs in tasks.values() for row in runs.rows]
        lines.append(
            Line(
                label=label,
                settings=_settings(tasks, differing),
                steps={task: str(runs.rows[0].steps) for task, runs in tasks.items()},
                seeds={task: runs.seeds for task, runs in tasks.items()},
                cells=tuple(_cell([row for row in own if _column(row) == column]) for column in columns),
                unknown=any(runs.unknown for runs in tasks.values()),
                repeated=any(runs.number > 0 for runs in tasks.values()),
            )
        )
    return Table(
        corpus=corpus,
        split=split,
        columns=tuple(
            Column(
                task=row.task,
                test_set=row.test_set,
                utterances=row.utterances,
                chance=row.chance,
                twins=names[row.task, row.test_set] > 1,
            )
            for row in columns.values()
        ),
        lines=tuple(lines),
    )


def _column(row: Row) -> tuple[Any, ...]:
    """Identifies the utterances that were judged; with other references, chance is another one."""
    return (row.task, row.test_set, row.utterances, f"{row.chance:.6g}")


def _cell(rows: Sequence[Row]) -> Cell | None:
    if not rows:
        return None
    scores = {row.seed: row.value for row in sorted(rows, key=lambda row: row.seed)}
    return Cell(scores=scores, error=rows[0].value_error if len(rows) == 1 else None)


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
        return {name: _shown(value) for name, value in own.items() if name not in _STEPS}


_STEPS = ("steps", "runner.total_steps")


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


def _runs(rows: Sequence[Row]) -> list[_Runs]:
    """Rows of one label and task by their settings. Where a seed has two scores, something unknown differs: then no row
    is put together with another."""
    groups: dict[str, dict[tuple[Any, ...], list[Row]]] = {}
    for row in rows:
        groups.setdefault(canonical(row.identity), {}).setdefault(_column(row), []).append(row)
    found = []
    for columns in groups.values():
        if all(len({row.seed for row in column}) == len(column) for column in columns.values()):
            found.append(_Runs(rows=tuple(row for column in columns.values() for row in column)))
            continue
        for number in range(max(map(len, columns.values()))):
            one = tuple(column[number] for column in columns.values() if number < len(column))
            found.append(_Runs(rows=one, number=number + 1))
    return found


# --- in what they differ ---------------------------------------------------------------------------------------------

_JUDGED = ("upstream", "ckpt")
"""What a label stands for; shown only where one label stands for several."""
_ABSENT = "absent"


def _differing(every: Sequence[_Runs]) -> set[tuple[str, str]]:
    """(task, name) of the settings that have several values, and (label, name) of what was judged."""
    values: dict[tuple[str, str], set[str]] = {}
    known = [runs for runs in every if not runs.unknown]
    names = dict.fromkeys(name for runs in known for name in runs.settings)
    for runs in every:
        own = runs.settings
        for name in own if runs.unknown else names:
            of = runs.rows[0].label if name in _JUDGED else runs.rows[0].task
            values.setdefault((of, name), set()).add(own.get(name, _ABSENT))
    return {key for key, several in values.items() if len(several) > 1}


def _settings(line: Mapping[str, _Runs], differing: set[tuple[str, str]]) -> str:
    """``optimizer.lr=0.1``, or ``SID optimizer.lr=0.1`` where the line's other tasks have something else."""
    told: dict[str, dict[str, str]] = {}
    for task, runs in line.items():
        row = runs.rows[0]
        for name, value in runs.settings.items():
            if (row.label if name in _JUDGED else task, name) in differing:
                told.setdefault(f"{name}={value}", {})[task] = ""
        if runs.unknown:
            told.setdefault(UNKNOWN, {})[task] = ""
        if runs.number:
            told.setdefault(f"run {runs.number}", {})[task] = ""
    return "; ".join(text if len(of) == len(line) else f"{' '.join(of).upper()} {text}" for text, of in told.items())


def _shown(value: Any) -> str:
    """A value as ``--set`` takes it; a checksum is shortened."""
    if isinstance(value, str):
        return value[:8] if re.fullmatch("[0-9a-f]{64}", value) else value
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list | tuple) else json.dumps(value)


def _common(values: Sequence[Any]) -> str | None:
    """What all lines share, as text; None if they differ. Tasks that only some lines have do not count."""
    if not isinstance(values[0], Mapping):
        return values[0] if len(set(values)) == 1 else None
    merged: dict[str, set[str]] = {}
    for value in values:
        for task, text in value.items():
            merged.setdefault(task, set()).add(text)
    if any(len(several) > 1 for several in merged.values()):
        return None
    return _by_task({task: merged[task].pop() for task in TASKS if task in merged})


def _by_task(values: Mapping[str, str]) -> str:
    """``300``, or ``PR 300, SID 600`` where tasks differ."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{task.upper()} {text}" for task, text in values.items())


def _width(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
