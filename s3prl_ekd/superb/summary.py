"""Results on disk and on the screen: ``summary.json`` and the tables made from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import write_json
from s3prl_ekd.superb.outcome import METRICS

FORMAT = 1
CHANCE = "chance"
"""Label of the table's first line, the best constant answer's scores."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score."""

    task: str
    """``pr``, ``sid``, ``er`` or ``asr``."""
    split: str
    """``public`` or ``hidden``."""
    test_set: str
    """Name of the test set, such as ``test-noisy``."""
    metric: str
    """``PER``, ``accuracy`` or ``WER``."""
    value: float
    """The score in percent; the mean over folds where there are some."""
    chance: float
    """The best constant answer's score in percent."""
    chance_error: float
    """Standard error of ``chance``."""
    utterances: int
    """Size of the test set, over all folds."""
    upstream: str
    """What was judged."""
    ckpt: str | None
    """Its weights."""
    label: str
    """Its name in tables."""
    seed: int
    """Seed of the downstream training."""
    steps: int
    """Optimizer steps of the downstream training."""
    seconds: float
    """Training and this evaluation, over all folds."""
    corpus: str
    """``mini`` or ``real``."""
    checkpoint: str
    """Which downstream checkpoint was judged; several for folds."""
    folds: tuple[float, ...] = ()
    """Scores of the folds."""

    @classmethod
    def from_folds(cls, entries: Sequence[Mapping[str, Any]], **common: Any) -> Row:
        """Combine the results of one test set over the folds of a task (most tasks have one)."""
        values = [entry["value"] for entry in entries]
        error = math.sqrt(sum(entry["chance_error"] ** 2 for entry in entries)) / len(entries)
        return cls(
            value=fmean(values),
            chance=fmean(entry["chance"] for entry in entries),
            chance_error=error,
            utterances=sum(entry["utterances"] for entry in entries),
            steps=entries[0]["steps"],
            seconds=round(sum(entry["seconds"] for entry in entries), 1),
            checkpoint=", ".join(sorted({entry["checkpoint"] for entry in entries})),
            folds=tuple(values) if len(values) > 1 else (),
            **common,
        )

    @property
    def off_chance(self) -> bool:
        """Whether the score is better than the best constant answer's by three standard errors."""
        return METRICS[self.task].off_chance(self.value, self.chance, self.chance_error)

    @property
    def key(self) -> tuple[Any, ...]:
        """What a newer row replaces an older one by."""
        return (self.label, self.upstream, self.ckpt, self.seed, self.corpus, self.task, self.split, self.test_set)


def write_summary(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Put ``rows`` into a summary, atomically; rows of other tasks and splits that are there stay. Returns all."""
    merged = {row.key: row for row in (read_summary(path) if path.is_file() else [])}
    merged |= {row.key: row for row in rows}
    write_json(path, {"format": FORMAT, "rows": [asdict(row) for row in merged.values()]})
    return list(merged.values())


def read_summary(path: Path) -> list[Row]:
    """Read a ``summary.json`` (or the one in a folder).

    Raises:
        UserError: it is missing or something else.
    """
    path = path / "summary.json" if path.is_dir() else path
    names = {item.name for item in fields(Row)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [
            Row(**{key: value for key, value in row.items() if key in names} | {"folds": tuple(row.get("folds", ()))})
            for row in content["rows"]
        ]
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; give a summary.json written by s3prl-ekd superb"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a summary.json of s3prl-ekd superb ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scores of one split: a line per label, a column per test set, a first line of chance."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]

    def text(self) -> str:
        """Aligned columns."""
        cells = [("", *self.columns), *((label, *values) for label, values in self.lines)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns) + 1)]
        rows = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in cells
        ]
        return "\n".join([self.title, *(row.rstrip() for row in rows)])

    def markdown(self) -> str:
        """A table of Markdown."""
        rows = [
            ("", *self.columns),
            ("---", *("---:" for _ in self.columns)),
            *((label, *values) for label, values in self.lines),
        ]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)])


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table per corpus and split; several seeds become mean +- standard deviation."""
    groups = dict.fromkeys((row.corpus, row.split) for row in rows)
    order = list(METRICS)
    built = []
    for corpus, split in sorted(groups, key=lambda group: (group[0], group[1] != "public")):
        chosen = [row for row in rows if (row.corpus, row.split) == (corpus, split)]
        columns = sorted({(order.index(row.task), row.test_set) for row in chosen})
        labels = list(dict.fromkeys(row.label for row in chosen))
        lines = [(CHANCE, tuple(_cell([r.chance for r in _at(chosen, column)][:1]) for column in columns))]
        for label in labels:
            own = [row for row in chosen if row.label == label]
            lines.append((label, tuple(_cell([row.value for row in _at(own, column)]) for column in columns)))
        built.append(
            Table(
                title=f"{corpus} corpus, {split} test sets (percent)",
                columns=tuple(_heading(order[task], test_set) for task, test_set in columns),
                lines=tuple(lines),
            )
        )
    return built


def _at(rows: Sequence[Row], column: tuple[int, str]) -> list[Row]:
    return [row for row in rows if (list(METRICS).index(row.task), row.test_set) == column]


def _heading(task: str, test_set: str) -> str:
    metric = METRICS[task]
    name = "" if test_set in ("test", "hidden") else f" {test_set}"
    return f"{task.upper()}{name} {metric.name} {'↑' if metric.higher_is_better else '↓'}"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"
