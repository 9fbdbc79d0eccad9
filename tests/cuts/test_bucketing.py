"""Batches of like duration."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from s3prl_ekd.cuts.bucketing import draw_batches, duration_bounds


@dataclass
class Item:
    samples: int


@pytest.mark.parametrize("buffer", [1, 50, 5000])
@pytest.mark.parametrize("most", [None, 7])
def test_buckets(buffer, most):
    draw = random.Random(0)
    items = [Item(draw.randint(400, 16000)) for _ in range(3000)]
    bounds = duration_bounds((item.samples for item in items), 6)
    assert len(bounds) == 5
    assert bounds == sorted(set(bounds))
    batches = list(draw_batches(items, bounds, budget=64000, most=most, buffer=buffer, rng=random.Random(1)))
    drawn = [item for batch in batches for item in batch]
    assert len(drawn) == len({id(item) for item in drawn}) == len(items)
    padded = [len(batch) * max(item.samples for item in batch) for batch in batches]
    assert max(padded) <= 64000
    assert max(map(len, batches)) <= (most or 64000)
    assert sum(item.samples for item in items) / sum(padded) > 0.75  # little padding
    again = draw_batches(items, bounds, budget=64000, most=most, buffer=buffer, rng=random.Random(1))
    assert all(a == b for a, b in zip(batches, again, strict=True))


def test_buckets_of_hardly_anything():
    assert duration_bounds([500], 30) == []
    assert duration_bounds([500] * 100, 30) == []
    long = [Item(90000), Item(500)]
    batches = list(draw_batches(long, [], budget=64000, most=None, buffer=10, rng=random.Random(0)))
    assert sorted(len(batch) for batch in batches) == [1, 1]
