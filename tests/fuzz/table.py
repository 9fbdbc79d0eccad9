"""From outcomes to the table of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz import kinds, law

BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"


def summary(found: Mapping[str, Mapping[int, Mapping[str, Any]]], seed: int) -> dict[str, Any]:
    """Counts and extremes of each kind, and every case that broke."""
    rows, broken = {}, []
    for name, outcomes in found.items():
        verdicts = [outcome["verdict"] for outcome in outcomes.values()]
        rows[name] = {
            "about": kinds.load(name).ABOUT,
            **{verdict: verdicts.count(verdict) for verdict in (law.WORKS, law.REFUSED, law.BROKEN)},
            "seconds": max((outcome["seconds"] for outcome in outcomes.values()), default=0.0),
            "mebibytes": max((outcome["mebibytes"] for outcome in outcomes.values()), default=0.0),
        }
        broken += [
            {"kind": name, "case": number, "message": outcome["message"], "notes": outcome["notes"]}
            for number, outcome in outcomes.items()
            if outcome["verdict"] == law.BROKEN
        ]
    return {"seed": seed, "kinds": rows, "broken": broken}


def markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        "| tried | cases | works | refused in one line | broken | longest (CPU s) | most memory (MiB) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    total = dict.fromkeys((law.WORKS, law.REFUSED, law.BROKEN), 0)
    for row in result["kinds"].values():
        counts = {verdict: row[verdict] for verdict in total}
        total = {verdict: total[verdict] + counts[verdict] for verdict in total}
        lines.append(_line(row["about"], counts, f"{row['seconds']:.1f}", f"{row['mebibytes']:.0f}"))
    lines.append(_line("**all**", total, "", ""))
    return "\n".join(lines)


def _line(about: str, counts: Mapping[str, int], *extremes: str) -> str:
    return "| " + " | ".join([about, str(sum(counts.values())), *map(str, counts.values()), *extremes]) + " |"


def refresh(document: Path, result: Mapping[str, Any]) -> None:
    """Put the table into a document, between its two marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\nSeed {result['seed']}.\n\n{markdown(result)}\n{END}{after}"
    document.write_text(text, encoding="utf-8")
