"""A table's intervals, and which of its scores are better or worse than a baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from s3prl_ekd.errors import UserError
from s3prl_ekd.superb.intervals import draws, folds_of, interval
from s3prl_ekd.superb.summary import Row
from s3prl_ekd.superb.table import SPREAD, Column, Difference, Line, Table
from s3prl_ekd.tasks import TASKS

Judged = Sequence[Sequence[Sequence[Row]]]
"""By column and line, the rows of a cell: they differ in the seed only."""


def with_intervals(table: Table, judged: Judged, baseline: str | None) -> Table:
    """The table with the interval of each score, and of its difference from the line whose label is ``baseline``."""
    base = [place for place, line in enumerate(table.lines) if line.label == baseline]
    if len(base) > 1:
        raise UserError(f"--baseline {baseline}: {len(base)} lines of a table are called so; report one of them")
    columns = tuple(
        _column_with_intervals(column, rows, table.lines, base[0] if base else None)
        for column, rows in zip(table.columns, judged, strict=True)
    )
    notes = [note for note in table.notes if note != SPREAD]
    notes.append("[ ]: 95 % interval over utterances and seeds")
    if any(cell and cell.seeds == 1 for column in columns for cell in column.cells):
        notes.append("with one seed, an interval knows nothing of how trainings scatter")
    if base:
        notes.append(f"▲ better, ▼ worse than {baseline}: 0 is outside the 95 % interval of the difference")
    return replace(table, columns=columns, notes=notes)


def _column_with_intervals(
    column: Column, rows: Sequence[Sequence[Row]], lines: Sequence[Line], base: int | None
) -> Column:
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
