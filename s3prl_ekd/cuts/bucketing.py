"""Batches of entries of like duration, drawn at random from a stream that is never held as a whole.

The idea is that of Lhotse's DynamicBucketingSampler. Lhotse 1.33's own costs a shuffle of a whole bucket per batch
(measured: 40 to 130 microseconds a cut, which every rank pays for the cuts of all ranks, and for all cuts before the
position at which a run resumes), may exceed the seconds asked for, and shares the tail among ranks by repeating cuts.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from s3prl_ekd.audio.manifests import Entry

_MORE = 1000  # entries read at once when the buffer holds no full batch


@dataclass(slots=True)
class Bucket:
    """Entries of like duration."""

    entries: list[Entry] = field(default_factory=list)
    samples: int = 0

    def put(self, entry: Entry) -> None:
        """Add one."""
        self.entries.append(entry)
        self.samples += entry.samples

    def draw(self, budget: int, most: int, rng: random.Random) -> list[Entry]:
        """Take out a random batch: at most ``most`` entries and ``budget`` samples, padding included; at least one."""
        batch: list[Entry] = []
        longest = 0
        while self.entries and len(batch) < most:
            index = rng.randrange(len(self.entries))
            longest = max(longest, self.entries[index].samples)
            if batch and (len(batch) + 1) * longest > budget:
                break
            self.entries[index], self.entries[-1] = self.entries[-1], self.entries[index]
            batch.append(self.entries.pop())
            self.samples -= batch[-1].samples
        return batch


def duration_bounds(samples: Iterable[int], buckets: int) -> list[int]:
    """Increasing bounds between at most ``buckets`` buckets that hold about equally many samples in total."""
    ordered = sorted(samples)
    share = sum(ordered) / buckets
    bounds = ordered[:1]  # a sentinel: a bound above the shortest has something below it
    held = 0
    for size in ordered:
        if held >= share and size > bounds[-1]:
            bounds.append(size)
            held = 0
        held += size
    return bounds[1:]


def draw_batches(
    entries: Iterable[Entry],
    bounds: Sequence[int],
    *,
    budget: int,
    most: int | None,
    buffer: int,
    rng: random.Random,
) -> Iterator[list[Entry]]:
    """Every entry once, in random batches of entries from one bucket.

    Args:
        entries: read as far as needed.
        bounds: durations in samples that separate the buckets.
        budget: samples of a padded batch at most; a longer entry is a batch of its own.
        most: entries of a batch at most.
        buffer: entries held to draw from.
        rng: makes all choices.
    """
    buckets = [Bucket() for _ in range(len(bounds) + 1)]
    waiting = iter(entries)
    most = most if most is not None else budget

    def fill(count: int) -> bool:
        more = list(islice(waiting, count))
        for entry in more:
            buckets[bisect_right(bounds, entry.samples)].put(entry)
        return bool(more)

    fill(buffer)
    while True:
        # A bucket with this much fills a batch. Chosen by content, so that the mix of durations stays the same.
        choices = [bucket for bucket in buckets if bucket.samples >= budget or len(bucket.entries) >= most]
        if not choices:
            if fill(_MORE):
                continue
            choices = [bucket for bucket in buckets if bucket.entries]
            if not choices:
                return
        batch = rng.choices(choices, [bucket.samples for bucket in choices])[0].draw(budget, most, rng)
        yield batch
        fill(len(batch))
