"""Which learning rate is shown: the best one on the development set, whatever the test set says."""

from __future__ import annotations

import pytest
from helpers_results import row, settings

from s3prl_ekd.superb.selection import best_on_dev
from s3prl_ekd.superb.summary import Row
from s3prl_ekd.superb.tables import tables


def tried(rate: float, dev: float | None, seed: int = 1, **changes) -> Row:
    return row(settings=settings(optimizer={"lr": rate}), dev=dev, seed=seed, searched=True, **changes)


def best(*rows: Row) -> set[float]:
    return {kept.settings["downstream"]["optimizer"]["lr"] for kept in best_on_dev(rows)}


def test_dev_alone_decides_and_its_direction_is_the_task_s():
    assert best(tried(0.1, 70.0, value=10.0), tried(0.01, 60.0, value=99.0)) == {0.1}
    assert best(tried(0.1, 70.0, task="pr"), tried(0.01, 60.0, task="pr")) == {0.01}
    assert best(tried(0.1, None, task="asr"), tried(0.01, 99.0, task="asr")) == {0.01}  # nothing better than nothing
    assert best(tried(0.1, 60.0), tried(0.01, 60.0), tried(0.02, 59.0)) == {0.01}


def test_seeds_are_averaged_and_must_be_complete():
    rows = [tried(0.1, 90.0), tried(0.1, 10.0, 2), tried(0.01, 60.0), tried(0.01, 60.0, 2), tried(1.0, 99.0)]
    assert best(*rows) == {0.01}
    assert best(*rows, tried(1.0, 99.0, 2)) == {1.0}


def test_each_search_is_one_of_its_own_and_other_rows_stay():
    rows = [tried(0.1, 70.0), tried(0.01, 60.0), tried(0.01, 50.0, label="mine"), tried(0.2, 10.0, split="hidden")]
    alone = row(settings=settings(optimizer={"lr": 5.0}))
    assert best_on_dev([*rows, alone]) == [rows[0], rows[2], rows[3], alone]


@pytest.mark.parametrize(("rate", "told"), [(0.1, True), (0.01, False)])
def test_a_rate_at_the_edge_is_told(rate, told):
    rows = [tried(other, 90.0 if other == rate else 50.0) for other in (0.001, 0.01, 0.1)]
    (table,) = tables(rows)
    assert ("the best learning rate is the lowest or highest of those tried: ER of fbank (0.1)" in table.notes) == told
    assert f"learning rate of the downstream training: {rate}" in table.notes
