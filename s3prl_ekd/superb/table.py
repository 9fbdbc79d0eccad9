"""A table of scores, and how it is shown: as text, Markdown or plain values."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from s3prl_ekd.cost import IN_WORDS, short
from s3prl_ekd.tasks import TASKS

BY_TASK = {"steps": "steps", "seeds": "seeds", "rates": "learning rate"}
"""Fields of a :class:`Line` by task -> what they are called."""
SPREAD = "±: standard deviation over n seeds"
"""The note that explains :attr:`Cell.deviation`."""
_MARKS = {"better": "▲", "worse": "▼", "": ""}


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
    costs: Mapping[str, float] = field(default_factory=dict)
    """What the student costs, by the keys of :data:`s3prl_ekd.cost.COSTS`; empty where that is unknown."""


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
        steps_differ = shared([line.steps for line in self.lines]) is None
        named = []
        for line in self.lines:
            said = [line.settings] if line.settings else []
            said += [f"{_by_task(line.steps)} steps"] if steps_differ else []
            named.append(f"{line.label} ({'; '.join(said)})" if said else line.label)
        return named

    def rows(self) -> list[list[str]]:
        """Heading, chance and lines as text. Settings, steps and seeds have a column if lines differ in them, what
        students cost if that of one is known."""
        columns = [["", "chance", *(line.label for line in self.lines)]]
        if len({line.settings for line in self.lines}) > 1:
            columns.append(["settings", "", *(line.settings for line in self.lines)])
        for kind, heading in IN_WORDS.items():
            amounts = [line.costs.get(kind) for line in self.lines]
            if any(amounts):
                columns.append([heading, "", *("-" if amount is None else short(amount) for amount in amounts)])
        for name, heading in BY_TASK.items():
            values = [getattr(line, name) for line in self.lines]
            if shared(values) is None:
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


def shared(values: Sequence[Mapping[str, str]]) -> str | None:
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
