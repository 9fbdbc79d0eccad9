"""The training data as Lightning sees it: one epoch without end, each batch with the place that follows it.

Lightning fetches a batch ahead, and workers more; what a checkpoint must hold is the place after the last batch that
was *consumed*. So each batch carries its own; Lightning's way of resuming loaders, which is not exact, is not used.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.audio.batch import Batch, empty_batch
from s3prl_ekd.errors import UserError
from s3prl_ekd.training.random_state import preserved
from s3prl_ekd.training.stopping import GRACE_SECONDS, Interrupted, StopSignals

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """Where batches come from, see :class:`s3prl_ekd.cuts.stream.BatchStream`."""

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


class DataError(UserError):
    """No batch comes any more; between two steps."""


class EndlessBatches:
    """Epoch after epoch from a place on.

    Args:
        stream: the data.
        start: the place.
        signals: what may end the wait for a batch.
        world_size: number of processes, which make each step together.

    Raises:
        DataError: while iterating, when an epoch holds no batch at all, or the stream raises a UserError.
        Interrupted: while iterating, when a signal has come and this process is alone. One of several cannot stop
            between steps, so that it gives empty batches until all stop together.
    """

    def __init__(
        self, stream: Stream, start: Position, signals: StopSignals | None = None, world_size: int = 1
    ) -> None:
        self.stream = stream
        self.start = start
        self.signals = signals
        self.grace = GRACE_SECONDS if world_size > 1 else 0.0

    def __iter__(self) -> Iterator[Placed]:
        place = self.start
        while True:
            try:
                for batch in quiet(self.stream.loader(place.epoch, place.consumed), self.signals, self.grace):
                    place = Position(place.epoch, place.consumed + 1)
                    yield Placed(batch, place)
            except UserError as error:
                raise DataError(str(error)) from error
            except Interrupted:
                if not self.grace:
                    raise
                logger.warning("no batch has come since the signal; this process stops without those that are due")
                while True:
                    place = Position(place.epoch, place.consumed + 1)
                    yield Placed(empty_batch(), place)
            if place.consumed == 0:
                raise DataError(
                    "data: an epoch holds not one batch for each process; give more speech or fewer devices"
                )
            place = Position(place.epoch + 1)


def quiet(batches: Iterable[Batch], signals: StopSignals | None = None, grace: float = 0.0) -> Iterator[Batch]:
    """The same batches, read without touching the random generators that dropout draws from.

    Raises:
        Interrupted: ``grace`` seconds after a signal, if the wait for a batch lasts as long.
    """

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        with preserved(), signals.waiting(grace) if signals is not None else contextlib.nullcontext():
            yield

    with waiting():
        iterator = iter(batches)
    while True:
        with waiting():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch
