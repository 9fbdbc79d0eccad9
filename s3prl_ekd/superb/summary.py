"""Results on disk: scores with all that they depend on, in ``summary.json``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from s3prl_ekd.cost import COSTS
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import write_json
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.task import RATE

FORMAT = 2
"""The format written; format 1 had neither ``value_error`` nor ``weights`` nor ``settings``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score."""

    task: str
    """One of :data:`~s3prl_ekd.tasks.TASKS`."""
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
    value_error: float | None = None
    """Standard error of ``value`` over utterances, in percent; None: unknown."""
    weights: str | None = None
    """SHA-256 of the weights in ``ckpt``, empty where that is no local path; None: unknown."""
    dev: float | None = None
    """Score of the checkpoint on the development set in percent, the mean over folds; None: unknown, or no evaluation
    was better than nothing."""
    searched: bool = False
    """Whether several learning rates were to be tried: then the tables show the best one on the development set."""
    outcomes: tuple[str, ...] = field(default=(), repr=False)
    """Files of what became of each utterance, one per fold; empty: unknown. On disk relative to the summary."""
    parameters: float | None = None
    """Of the student that was judged, prediction heads excluded; None: unknown, or no student."""
    multiply_adds: float | None = None
    """Likewise, for a second of audio."""
    settings: Mapping[str, Any] | None = field(default=None, repr=False)
    """What else the score depends on: mappings ``downstream``, the configuration of the training, and ``data``, what it
    and the test read, beside what an evaluation has for all tasks, such as ``fine_tune``. None: unknown."""

    @classmethod
    def from_folds(cls, entries: Sequence[Mapping[str, Any]], **common: Any) -> Row:
        """Combine the results of one test set over the folds of a task (most tasks have one)."""
        values = [entry["value"] for entry in entries]
        dev = [entry["dev"] for entry in entries if entry.get("dev") is not None]
        errors = [entry["value_error"] for entry in entries if entry.get("value_error") is not None]
        return cls(
            value=fmean(values),
            value_error=_error_of_mean(errors) if len(errors) == len(entries) else None,  # earlier versions had none
            chance=fmean(entry["chance"] for entry in entries),
            chance_error=_error_of_mean([entry["chance_error"] for entry in entries]),
            utterances=sum(entry["utterances"] for entry in entries),
            steps=entries[0]["steps"],
            seconds=round(sum(entry["seconds"] for entry in entries), 1),
            checkpoint=", ".join(sorted({entry["checkpoint"] for entry in entries})),
            folds=tuple(values) if len(values) > 1 else (),
            dev=fmean(dev) if len(dev) == len(entries) else None,
            **common,
        )

    @property
    def common(self) -> dict[str, Any]:
        """What an evaluation has for all of its tasks: its settings, and what it judged: known by the content of the
        weights, so that a copy is the same, or else by its name."""
        plain = {name: value for name, value in (self.settings or {}).items() if not isinstance(value, Mapping)}
        return {"upstream": self.upstream, "ckpt": self.weights or self.ckpt, **plain}

    @property
    def costs(self) -> dict[str, float]:
        """What the student costs, by the keys of :data:`s3prl_ekd.cost.COSTS`; empty where that is unknown."""
        found = {kind: getattr(self, kind) for kind in COSTS}
        return {kind: amount for kind, amount in found.items() if amount is not None}

    def of_cost(self, costs: Mapping[str, float]) -> Row:
        """The same of a student that costs so much, by the keys of :data:`s3prl_ekd.cost.COSTS`."""
        return replace(self, parameters=costs.get("parameters"), multiply_adds=costs.get("multiply_adds"))

    @property
    def identity(self) -> dict[str, Any]:
        """All that the score depends on but the seed, as far as it is known, by dotted names."""
        settings = self.settings or {}
        data = {"data": settings.get("data", {})}
        return {**self.common, "steps": self.steps, **flat(data), **flat(settings.get("downstream", {}))}

    @property
    def result(self) -> tuple[Any, ...]:
        """The scores. Two rows that agree in them and in all that is known of both are of one run."""
        return (self.value, self.folds, self.chance, self.utterances)

    @property
    def key(self) -> str:
        """All but the scores: a newer row replaces an older one with the same key."""
        return canonical([self.corpus, self.split, self.task, self.test_set, self.label, self.seed, self.identity])


def _error_of_mean(errors: Sequence[float]) -> float:
    """Standard error of the mean of independent scores with these standard errors."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A mapping of mappings as one, of dotted keys."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return found


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values, also after they were written and read again."""
    return json.dumps(value, sort_keys=True)


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Every run once; of two rows of a run, the one that has its settings."""
    once = {(row.key, row.result): row for row in rows}.values()
    known = {_known(row) for row in once if row.settings is not None}
    return [row for row in once if row.settings is not None or _known(row) not in known]


def _known(row: Row) -> tuple[Any, ...]:
    """What format 1 stores of a run."""
    place = (row.corpus, row.split, row.task, row.test_set)
    return (*place, row.label, row.upstream, row.ckpt, row.steps, row.seed, *row.result)


def write_summary(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Put ``rows`` into a summary, atomically. Returns all that are then in it.

    A row replaces the one of the same run; those of other tasks, splits, seeds and settings stay.

    Raises:
        UserError: there is something else, or the file cannot be read or written.
    """
    merged = {row.key: row for row in (read_summary(path) if path.is_file() else [])}
    merged |= {row.key: row for row in rows}
    kept = distinct(merged.values())
    write_json(path, {"format": FORMAT, "rows": [_moved(asdict(row), path.parent) for row in kept]})
    return kept


def _moved(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row as it is written: its files relative to the summary's folder, so that both can be moved."""
    return item | {"outcomes": [os.path.relpath(file, folder) for file in item["outcomes"]]}


def read_summary(path: Path) -> list[Row]:
    """Read a ``summary.json`` (or the one in a folder), of this format or the one before.

    Raises:
        UserError: it is missing or something else.
    """
    path = path / "summary.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        form = content.get("format", 1)
        if isinstance(form, int) and form > FORMAT:
            raise UserError(f"{path} is of format {form}, this version reads up to {FORMAT}: install a newer s3prl-ekd")
        if form not in (1, FORMAT):
            raise ValueError(f"its format is {form!r}")
        return [_row(item, path.parent.absolute()) for item in content["rows"]]
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; give a summary.json written by s3prl-ekd superb"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path} is not a summary.json of s3prl-ekd superb ({one_line(error)})") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Type of a field of Row -> whether a value read from a file has it.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "bool": lambda value: isinstance(value, bool),
    "tuple[float, ...]": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "Mapping[str, Any] | None": lambda value: (
        value is None or (isinstance(value, dict) and isinstance(value.get("downstream"), dict))
    ),
}


def _row(item: Mapping[str, Any], folder: Path) -> Row:
    """A row read from a file in ``folder``, without fields that only later versions know."""
    values = {one.name: item[one.name] for one in fields(Row) if one.name in item}
    for one in fields(Row):
        if one.name in values and not _KINDS[str(one.type)](values[one.name]):
            raise ValueError(f"{one.name} is {values[one.name]!r:.60}")
    files = tuple(os.path.normpath(folder / file) for file in values.get("outcomes", ()))
    row = Row(**values | {"folds": tuple(values.get("folds", ())), "outcomes": files})
    if row.task not in TASKS:
        raise ValueError(f"unknown task {row.task!r:.60}")
    if row.searched and not _is_number(row.identity.get(RATE)):
        raise ValueError("searched, but without a learning rate")
    return row
