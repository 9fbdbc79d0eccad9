"""``s3prl-ekd report``: one table, and on request a picture, from several ``summary.json``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path
from s3prl_ekd.superb.summary import CHANCE, Table, read_summary, tables

_HIGHEST = 125.0  # percent; error rates have no end, and a bar of 300 would hide the others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "summaries", nargs="+", type=Path, metavar="SUMMARY", help="summary.json, or the folder it is in"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw bars (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Print a table per corpus and split."""
    made = tables([row for path in args.summaries for row in read_summary(path)])
    print("\n\n".join(table.markdown() if args.markdown else table.text() for table in made))
    if args.plot:
        plot(made, args.plot)
        print(f"\n{args.plot}", file=sys.stderr)
    return 0


def plot(made: list[Table], path: Path) -> None:
    """Draw the tables as groups of bars, one panel each.

    Raises:
        UserError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(10, 4 * len(made)), layout="constrained")
    for axes, table in zip(figure.subplots(len(made), squeeze=False)[:, 0], made, strict=True):
        width = 0.8 / len(table.lines)
        for number, (label, cells) in enumerate(table.lines):
            values = [float(cell.split(" ")[0]) if cell != "-" else 0.0 for cell in cells]
            places = [column + number * width for column in range(len(cells))]
            color = "lightgray" if label == CHANCE else None
            bars = axes.bar(places, [min(value, _HIGHEST) for value in values], width, label=label, color=color)
            axes.bar_label(bars, [f"{value:.0f}" for value in values], fontsize="small")
        axes.set_title(table.title)
        names = ["{}\n{} {}".format(*name.rsplit(" ", 2)) for name in table.columns]  # PR test-clean / PER and arrow
        axes.set_xticks([column + 0.4 - width / 2 for column in range(len(table.columns))], names)
        axes.set_ylim(0, 1.08 * _HIGHEST)
        axes.legend(loc="upper center", ncols=len(table.lines), fontsize="small")
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
