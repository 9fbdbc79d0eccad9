"""``python -m fuzz``: try everything, print the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

from fuzz import kinds, law, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
DOCUMENT = ROOT / "docs" / "reliability.md"


def main() -> int:
    """Status 1 if anything broke."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="cases of each kind (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default: %(default)s)")
    parser.add_argument("--kind", action="append", choices=kinds.NAMES, help="only this one (may be repeated)")
    parser.add_argument("--case", type=int, help="only the case of this number")
    parser.add_argument("--keep", type=Path, help="folder for the input of cases that broke, or of --case")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and {DOCUMENT.relative_to(ROOT)}"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    numbers = range(args.n) if args.case is None else range(args.case, args.case + 1)
    names, start, found = args.kind or kinds.NAMES, time.monotonic(), {}
    for index, name in enumerate(names):
        share = (60 * args.minutes + start - time.monotonic()) / (len(names) - index)
        found[name] = _try(name, numbers, time.monotonic() + share, args)
    summary = table.summary(found, args.seed)
    print(table.markdown(summary))
    for path in [args.json] if args.json else []:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if args.write:
        RESULTS.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        table.refresh(DOCUMENT, summary)
    for broken in summary["broken"]:
        print(f"BROKEN {broken['kind']} {broken['case']}: {broken['message']} [{broken['notes']}]", file=sys.stderr)
    return 1 if summary["broken"] else 0


def _try(name: str, numbers: range, until: float, args: argparse.Namespace) -> dict[int, dict]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:

        def keep(number: int, outcome: law.Outcome) -> None:
            if args.keep and (outcome.verdict == law.BROKEN or args.case is not None):
                shutil.copytree(Path(folder, "case"), args.keep / f"{name}-{number}", dirs_exist_ok=True, symlinks=True)

        outcomes = law.run(kinds.load(name), Path(folder), seed=args.seed, numbers=numbers, until=until, keep=keep)
    print(f"{name}: {len(outcomes)} cases", file=sys.stderr)
    return {number: dataclasses.asdict(outcome) for number, outcome in outcomes.items()}


if __name__ == "__main__":
    sys.exit(main())
