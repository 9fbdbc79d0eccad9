"""``s3prl-ekd curve``: a distillation as a picture: losses, agreement, and weights of teachers that are learnt."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of a run of distill (with its stages) or of s3prl's run_pretrain, which may still be going on;"
        " several runs that follow each other are drawn as one",
    )
    parser.add_argument("picture", type=Path, metavar="FILE.png", help="picture to write (also .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Draw the picture and print where it is."""
    from s3prl_ekd.training.curve import plot

    plot(args.runs, args.picture)
    print(args.picture)
    return 0
