"""``s3prl-ekd curve``: a run of distill as a picture: its losses, and how well every target is matched."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path

Series = dict[str, list[tuple[int, float]]]
"""Name in the log -> (step, value), by step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("run", type=Path, help="output folder of distill, of a run that may still be going on")
    parser.add_argument("picture", type=Path, metavar="FILE.png", help="picture to write (also .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Draw the picture and print where it is."""
    draw(read_log(args.run), args.picture)
    print(args.picture)
    return 0


def read_log(run: Path) -> Series:
    """What a run has logged. Where a resumed part repeats steps of the part before, its values count.

    Raises:
        UserError: there is no log.
    """
    files = sorted(run.glob("logs/csv/from-step-*/metrics.csv"))
    if not files:
        raise UserError(f"{run}: no logs/csv/*/metrics.csv there; name the output folder of a run of s3prl-ekd distill")
    found: dict[str, dict[int, float]] = {}
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in (None, "step"):
                        found.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def draw(series: Mapping[str, list[tuple[int, float]]], path: Path) -> None:
    """Losses on the left, the cosine of every target on the right.

    Raises:
        UserError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("curve needs matplotlib: pip install matplotlib") from error
    cosine = "train/cosine/"
    panels = {
        "loss": {"training": "train/loss", "dev": "dev/loss"},
        "cosine of prediction and target": {
            name.removeprefix(cosine): name for name in series if name.startswith(cosine)
        },
    }
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for label, name in lines.items():
            if name in series:
                axes.plot(*zip(*series[name], strict=True), label=label, marker="." if label == "dev" else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
