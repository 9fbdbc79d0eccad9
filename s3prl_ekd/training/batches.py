"""The training data as Lightning sees it: one epoch without end, each batch with the place that follows it.

Lightning fetches a batch ahead, and workers more; what a checkpoint must hold is the place after the last batch that
was *consumed*. So each batch carries its own; Lightning's way of resuming loaders, which is not exact, is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from s3prl_ekd.data.bad_recordings import BadRecordings
from s3prl_ekd.data.batch import Batch
from s3prl_ekd.errors import UserError
from s3prl_ekd.training.random_state import preserved


class Stream(Protocol):
    """Where batches come from, see :class:`s3prl_ekd.data.stream.BatchStream`."""

    bad_recordings: BadRecordings

    def loader(self, epoch: int, consumed: int = 0) -> Iterable[Batch]:
        """One epoch of this process, without its first ``consumed`` batches; equally many batches in each process."""

    def identity(self) -> dict[str, str]:
        """What a place in the data depends on."""

    def require_identity(self, stored: Mapping[str, str]) -> None:
        """Raise a UserError if a place stored with another identity would mean something else."""


@dataclass(frozen=True)
class Position:
    """A place in the data: so many batches of an epoch are consumed, by each process."""

    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True)
class Placed:
    """A batch and the place after it."""

    batch: Batch
    after: Position


class EndlessBatches:
    """Epoch after epoch from a place on.

    Raises:
        UserError: while iterating, when an epoch holds no batch at all.
    """

    def __init__(self, stream: Stream, start: Position) -> None:
        self.stream = stream
        self.start = start

    def __iter__(self) -> Iterator[Placed]:
        place = self.start
        while True:
            for batch in quiet(self.stream.loader(place.epoch, place.consumed)):
                place = Position(place.epoch, place.consumed + 1)
                yield Placed(batch, place)
            if place.consumed == 0:
                raise UserError(
                    "data: an epoch holds not one batch for each process; give more speech or fewer devices"
                )
            place = Position(place.epoch + 1)


def quiet(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, read without touching the random generators that dropout draws from."""
    with preserved():
        iterator = iter(batches)
    while True:
        with preserved():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch
