"""``s3prl-ekd report``: one table, and on request a picture, from several ``summary.json``."""

from __future__ import annotations

import argparse
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
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw bars (needs matplotlib)")


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
    made = tables(rows)
    print("\n\n".join(table.markdown() if args.markdown else table.text() for table in made))
    if args.plot:
        save(draw(made), args.plot)
        print(f"\n{args.plot}", file=sys.stderr)
    return 0
