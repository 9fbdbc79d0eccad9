"""Of the learning rates that were tried, the best one on the development set, as SUPERB does (arXiv 2105.01051, 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from s3prl_ekd.superb.summary import Row, canonical
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.task import RATE


def rate_of(row: Row) -> float:
    """The learning rate of the downstream training."""
    return row.identity[RATE]


@dataclass(frozen=True, kw_only=True)
class Search:
    """Rows that differ in nothing but the learning rate, the seed and the test set."""

    rates: dict[float, list[Row]]

    @property
    def best(self) -> float:
        """The rate with the best mean over seeds on the development set, among those that were run with the most seeds;
        of equal ones the lowest. No test set is looked at."""
        seeds = {rate: len({row.seed for row in rows}) for rate, rows in self.rates.items()}
        complete = [rate for rate in sorted(self.rates) if seeds[rate] == max(seeds.values())]
        return max(complete, key=self._quality)

    def _quality(self, rate: float) -> float:
        rows = self.rates[rate]
        sign = 1 if TASKS[rows[0].task].higher_is_better else -1
        by_seed = {row.seed: row.dev for row in rows}
        return fmean(float("-inf") if dev is None else sign * dev for dev in by_seed.values())

    @property
    def at_the_edge(self) -> bool:
        """Whether a rate that was not tried, below the lowest or above the highest, might be better."""
        return len(self.rates) > 1 and self.best in (min(self.rates), max(self.rates))


def searches(rows: Iterable[Row]) -> list[Search]:
    """The searches among ``rows``, see :attr:`Row.searched`."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if row.searched:
            settings = {name: value for name, value in row.identity.items() if name != RATE}
            key = canonical([row.corpus, row.split, row.task, row.label, settings])
            found.setdefault(key, {}).setdefault(rate_of(row), []).append(row)
    return [Search(rates=rates) for rates in found.values()]


def best_on_dev(rows: Iterable[Row]) -> list[Row]:
    """``rows``, of each search those of the best rate only."""
    rows = list(rows)
    kept = {row.key for search in searches(rows) for row in search.rates[search.best]}
    return [row for row in rows if not row.searched or row.key in kept]
