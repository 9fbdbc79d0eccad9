"""The tables of results as a picture: a panel per test set, a bar per line."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from s3prl_ekd.pictures import COLOURS, literal, new_figure
from s3prl_ekd.superb.table import Cell, Column, Table
from s3prl_ekd.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIGHEST = 125.0
"""Percent; error rates have no end, and a bar of 300 would make the others unreadable."""
_PANELS = 3  # side by side
_LABEL = 34  # characters in a line of a name
_LABEL_LINES = 4


def draw(tables: Sequence[Table]) -> Figure:
    """A part per table, in it a panel per test set, in it a bar per line of the table.

    Error rates end at :data:`HIGHEST`: a longer bar is hatched, with an arrow and its true value. What was not measured
    has the words "no result" in place of a bar.

    Raises:
        UserError: matplotlib is not installed.
    """
    names = [[_wrapped(name) for name in table.names] for table in tables]
    grids = [_grid(len(table.columns)) for table in tables]
    inches = []
    for (rows, _), own in zip(grids, names, strict=True):
        tallest = max(name.count("\n") + 1 for name in own)
        inches.append(0.4 + rows * (0.95 + len(own) * max(0.28, 0.18 * tallest)))
    longest = max(len(line) for own in names for name in own for line in name.split("\n"))
    width = max(6.5, 0.085 * longest + 2.9 * max(columns for _, columns in grids))
    figure = new_figure(width, sum(inches) + 0.5)
    parts = figure.subfigures(len(tables), 1, height_ratios=inches, squeeze=False)[:, 0]
    for part, table, own, (rows, columns) in zip(parts, tables, names, grids, strict=True):
        part.suptitle(f"{table.corpus} corpus, {table.split} test sets", fontsize="large", fontweight="bold")
        panels = part.subplots(rows, columns, squeeze=False)
        for number, axes in enumerate(panels.flat):
            if number < len(table.columns):
                _panel(axes, table.columns[number])
                axes.set_yticks(range(len(own)), own if number % columns == 0 else [""] * len(own))
            else:
                axes.set_axis_off()
    _legend(figure, tables)
    return figure


def _wrapped(name: str) -> str:
    return textwrap.fill(literal(name), _LABEL, max_lines=_LABEL_LINES, placeholder=" …")


def _grid(panels: int) -> tuple[int, int]:
    """How many rows and columns of panels there are."""
    columns = 2 if panels == 4 else min(panels, _PANELS)
    return -(-panels // columns), columns


def _panel(axes: Axes, column: Column) -> None:
    task = TASKS[column.task]
    end = _end(column)
    for place, (cell, colour) in enumerate(zip(column.cells, itertools.cycle(COLOURS))):
        if cell is None:
            axes.text(0.015 * end, place, "no result", va="center", color="dimgray", fontsize="small", style="italic")
            continue
        clipped = cell.mean > end
        marked: dict[str, Any] = {"hatch": "///", "edgecolor": "white"} if clipped else {}
        axes.barh(place, min(cell.mean, end), 0.72, color=colour, linewidth=0, **marked)
        kind = _interval(cell)
        high = cell.mean
        if kind and not clipped:
            low, high = _ends(cell, kind)
            axes.errorbar(cell.mean, place, xerr=[[cell.mean - low], [high - cell.mean]], **_INTERVALS[kind][1])
        several = f"(n={cell.seeds})" if cell.seeds > 1 else ""
        text = " ".join(filter(None, (f"{cell.mean:.1f}", "▶" if clipped else "", several, cell.mark)))
        axes.annotate(text, (min(high, end), place), (3, 0), textcoords="offset points", va="center",
                      fontsize="small", bbox=_OVER_CHANCE)  # fmt: skip
    axes.axvline(column.chance, **_CHANCE)
    axes.set_xlim(0, 1.3 * end)  # room for the figures
    axes.set_xticks([tick for tick in (0, 25, 50, 75, 100, 125) if tick <= end])
    axes.set_ylim(len(column.cells) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(literal(column.name), fontsize="medium")
    better = "→ higher is better" if task.higher_is_better else "← lower is better"
    axes.set_xlabel(f"{task.metric} (%)   {better}", fontsize="small")


def _end(column: Column) -> float:
    """Where the panel's axis ends: at 100 %, or at :data:`HIGHEST` if something is above."""
    return HIGHEST if max([column.chance, *(cell.mean for cell in column.cells if cell)]) > 100 else 100.0


def _interval(cell: Cell) -> str | None:
    """Which of :data:`_INTERVALS` the cell has: over seeds where there are several."""
    return next((kind for kind in _INTERVALS if getattr(cell, kind) is not None), None)


def _ends(cell: Cell, kind: str) -> tuple[float, float]:
    """Where the interval begins and ends; the mean is in it, though the mean of the draws may lie beside it."""
    if cell.interval:
        return min(cell.interval[0], cell.mean), max(cell.interval[1], cell.mean)
    return cell.mean - getattr(cell, kind), cell.mean + getattr(cell, kind)


def _legend(figure: Figure, tables: Sequence[Table]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Artist] = [Line2D([], [], label="chance: the best constant answer", **_CHANCE)]
    every = [(cell, column) for table in tables for column in table.columns for cell in column.cells if cell]
    for kind, (label, style) in _INTERVALS.items():
        if any(_interval(cell) == kind for cell, _ in every):
            entries.append(Line2D([], [], label=label, color=style["color"], linewidth=style["elinewidth"],
                                  marker="|" if "capsize" in style else None))  # fmt: skip
    if baselines := {cell.difference.baseline for cell, _ in every if cell.difference}:
        label = _wrapped(f"▲ better, ▼ worse than {baselines.pop()}")
        entries.append(Line2D([], [], linestyle="none", label=label))
    if any(cell.mean > _end(column) for cell, column in every):
        label = f"▶ longer than the {HIGHEST:.0f} % shown"
        entries.append(Patch(facecolor="gray", edgecolor="white", hatch="///", label=label))
    figure.legend(handles=entries, loc="outside lower center", ncols=2, fontsize="small", frameon=False)


_CHANCE: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 1}
_OVER_CHANCE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
# Attribute of a cell -> what it is, and how it looks.
_INTERVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "interval": ("95 % interval over utterances and seeds", {"color": "black", "elinewidth": 1.6, "capsize": 3}),
    "deviation": ("standard deviation over n seeds", {"color": "black", "elinewidth": 1.6, "capsize": 3}),
    "error": ("standard error over the test utterances, one seed", {"color": "black", "elinewidth": 0.8}),
}
