"""95 % intervals of scores and of their differences, by a bootstrap over utterances and seeds.

A draw takes the utterances of a test set with replacement (Efron 1979), the same ones for every upstream: what is hard
for all of them cancels in a difference (the paired bootstrap, Bisani and Ney 2004). It takes the seeds with replacement
too, for each upstream by itself, since the same number begins other trainings there. The mean of three values that are
drawn like this scatters too little, by the factor sqrt((n - 1) / n), so deviations between seeds are divided by it (Rao
and Wu 1988). In a simulation with 3 seeds and 200 utterances, the interval of a difference held the truth in 95 % of
the cases where seeds scatter by up to 6 points, and in 92 % where they scatter by 12: take five seeds then.

What is not modelled: utterances of one speaker are not independent, and the learning rate was chosen before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3prl_ekd.errors import UserError
from s3prl_ekd.superb.outcomes import Outcomes, read_outcomes
from s3prl_ekd.superb.summary import Row
from s3prl_ekd.tasks import TASKS

DRAWS = 2000
"""Ends of an interval are then known to a fiftieth of its width."""
LEVEL = 95
"""Percent."""
_AT_ONCE = 1 << 22  # utterances drawn at a time: 32 MiB

Draws = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What became of the utterances of one fold (most tasks have one): U utterances, S seeds."""

    names: tuple[str, ...]
    errors: NDArray[np.float64]
    """(S, U)."""
    lengths: NDArray[np.float64]
    """(U)."""


def folds_of(rows: Sequence[Row]) -> list[Fold]:
    """The outcomes of rows that differ in the seed only.

    Raises:
        UserError: there are none, or those of the seeds are of different utterances.
    """
    files = [row.outcomes for row in rows]
    missing = [row for row in rows if not row.outcomes]
    if missing:
        raise UserError(
            f"{missing[0].label}, {missing[0].task.upper()} {missing[0].test_set}: no interval, since its results were"
            " made by an earlier version, which kept no outcomes per utterance; judge it again with another --out"
        )
    return [_fold([read_outcomes(Path(file)) for file in of_seeds], rows[0]) for of_seeds in zip(*files, strict=True)]


def _fold(seeds: Sequence[Outcomes], row: Row) -> Fold:
    names = tuple(sorted(seeds[0]))
    lengths = [seeds[0][name][1] for name in names]
    for other in seeds[1:]:
        if sorted(other) != [*names] or [other[name][1] for name in names] != lengths:
            raise UserError(
                f"{row.label}, {row.task.upper()} {row.test_set}: no interval, its seeds were judged on different"
                " utterances"
            )
    errors = [[seed[name][0] for name in names] for seed in seeds]
    return Fold(names=names, errors=np.array(errors, float), lengths=np.array(lengths, float))


def draws(judged: Sequence[Sequence[Fold]], task: str, names: Sequence[str]) -> list[Draws]:
    """For each upstream, its score on the test set by draw, (DRAWS); utterances are drawn once for all of them.

    Args:
        judged: by upstream, the folds of the test set.
        task: of the scores.
        names: of the upstreams, for messages and for the drawing of seeds.

    Raises:
        UserError: the upstreams were judged on different utterances.
    """
    _refuse_others(judged, task, names)
    percent = TASKS[task].percent
    seeds = [len(folds[0].errors) for folds in judged]
    scores = [np.zeros((DRAWS, count)) for count in seeds]
    for folds in zip(*judged, strict=True):
        lengths, errors = folds[0].lengths, np.concatenate([fold.errors for fold in folds])
        for place, counts in _counts(folds[0]):
            drawn = percent(counts @ errors.T, (counts @ lengths)[:, None]) / len(judged[0])
            for own, part in zip(scores, np.split(drawn, np.cumsum(seeds)[:-1], axis=1), strict=True):
                own[place] += part
    return [_over_seeds(own, _generator(name)) for own, name in zip(scores, names, strict=True)]


def _refuse_others(judged: Sequence[Sequence[Fold]], task: str, names: Sequence[str]) -> None:
    first = [(fold.names, fold.lengths.tolist()) for fold in judged[0]]
    for name, folds in zip(names, judged, strict=True):
        if [(fold.names, fold.lengths.tolist()) for fold in folds] != first:
            raise UserError(
                f"{task.upper()}: no paired interval, {name} and {names[0]} were judged on different utterances"
            )


def _counts(fold: Fold) -> Iterator[tuple[slice, Draws]]:
    """How often each utterance is in each draw, (draws, U), for some draws at a time. They depend on the names of the
    utterances alone, so that two calls draw the same."""
    count = len(fold.names)
    generator = _generator("\n".join(fold.names))
    step = max(1, _AT_ONCE // count)
    for start in range(0, DRAWS, step):
        here = min(step, DRAWS - start)
        drawn = generator.integers(count, size=(here, count)) + count * np.arange(here)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=here * count).reshape(here, count)
        yield slice(start, start + here), counts.astype(np.float64)


def _over_seeds(scores: Draws, generator: np.random.Generator) -> Draws:
    """From scores by draw and seed, (DRAWS, S), the mean over drawn seeds, (DRAWS)."""
    count = scores.shape[1]
    mean = scores.mean(axis=1)
    if count == 1:
        return mean
    picked = np.take_along_axis(scores, generator.integers(count, size=scores.shape), axis=1).mean(axis=1)
    return mean + math.sqrt(count / (count - 1)) * (picked - mean)


def _generator(text: str) -> Any:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def interval(values: Draws) -> tuple[float, float]:
    """The ends between which :data:`LEVEL` percent of the draws lie."""
    tail = (100 - LEVEL) / 200
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
