"""``s3prl-ekd report``: one table, and on request a picture, from several ``summary.json``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from s3prl_ekd.errors import UserError
from s3prl_ekd.pictures import save
from s3prl_ekd.superb.picture import draw
from s3prl_ekd.superb.summary import read_summary
from s3prl_ekd.superb.tables import tables

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "summaries", nargs="+", type=Path, metavar="SUMMARY", help="summary.json, or the folder it is in"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw bars (needs matplotlib)")
    parser.add_argument("--intervals", action="store_true", help="give 95 %% intervals over utterances and seeds")
    parser.add_argument(
        "--baseline",
        metavar="LABEL",
        help="mark what is better or worse than this line, where a 95 %% interval of the difference says so",
    )
    parser.add_argument(
        "--every-rate",
        action="store_true",
        help="show every learning rate that was tried, and not only the best on the development set",
    )


def run(args: argparse.Namespace) -> int:
    """Print a table per corpus and split."""
    rows = []
    for path in args.summaries:
        found = read_summary(path)
        if not found:
            raise UserError(f"{path}: a summary without results; leave it out, or let s3prl-ekd superb fill it")
        rows += found
    corpora = sorted({row.corpus for row in rows})
    if len(corpora) > 1:
        logger.warning("results on the %s corpora: a table each, not to be compared", " and ".join(corpora))
    made = tables(rows, intervals=args.intervals, baseline=args.baseline, every_rate=args.every_rate)
    if args.json:
        print(json.dumps({"tables": [table.plain() for table in made]}, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(table.markdown() if args.markdown else table.text() for table in made))
    if args.plot:
        save(draw(made), args.plot)
        print(f"\n{args.plot}", file=sys.stderr)
    return 0
