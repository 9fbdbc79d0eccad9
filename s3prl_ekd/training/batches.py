"""The training data as Lightning sees it: one epoch without end, each batch with the position after it.

Lightning fetches a batch ahead, and workers more; what a checkpoint must hold is the position after the last batch that
was *consumed*. So each batch carries its own. Lightning's way of resuming loaders is not exact and not used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from s3prl_ekd.audio.batch import Batch, empty_batch
from s3prl_ekd.errors import UserError
from s3prl_ekd.training.random_state import preserved
from s3prl_ekd.training.stopping import GRACE_SECONDS, Interrupted, StopSignals

if TYPE_CHECKING:  # Lhotse takes seconds to import
    from s3prl_ekd.cuts.stream import BatchStream, EpochLoader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """A position in the data: so many batches of an epoch are consumed, by each process."""

    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True)
class PositionedBatch:
    """A batch and the position after it."""

    batch: Batch
    after: Position

    def to(self, device: torch.device) -> PositionedBatch:
        """Called by Lightning, as :meth:`Batch.to` is for dev batches."""
        return PositionedBatch(self.batch.to(device), self.after)


class DataError(UserError):
    """The stream has no more batches; raised while Lightning waits for one."""


class EndlessBatches:
    """Epoch after epoch, from a position on.

    Raises:
        DataError: while iterating, when an epoch holds no batch at all, or the stream raises a UserError.
        Interrupted: while iterating, when a signal has come and this process is alone. One of several cannot stop
            between steps, so that it gives empty batches until all stop together.
    """

    def __init__(
        self, stream: BatchStream, start: Position, signals: StopSignals | None = None, world_size: int = 1
    ) -> None:
        self.stream = stream
        self.start = start
        self.signals = signals
        self.grace = GRACE_SECONDS if world_size > 1 else 0.0

    def __iter__(self) -> Iterator[PositionedBatch]:
        position = self.start
        while True:
            try:
                batches = self.stream.loader(position.epoch, position.consumed)
                for batch in without_consuming_rng(batches, self.signals, self.grace):
                    position = Position(position.epoch, position.consumed + 1)
                    yield PositionedBatch(batch, position)
            except UserError as error:
                raise DataError(str(error)) from error
            except Interrupted:
                if not self.grace:
                    raise
                logger.warning("no batch has come since the signal; this process stops without those that are due")
                while True:
                    position = Position(position.epoch, position.consumed + 1)
                    yield PositionedBatch(empty_batch(), position)
            if position.consumed == 0:
                raise DataError(
                    "data: an epoch holds not one batch for each process; give more speech or fewer devices"
                )
            position = Position(position.epoch + 1)


class DevBatches:
    """The dev data, read without consuming random numbers.

    Attributes:
        complete: whether the last pass came to its end; a signal ends it if no batch comes any more.
    """

    def __init__(self, data: EpochLoader, signals: StopSignals) -> None:
        self.data = data
        self.signals = signals
        self.complete = True

    def __iter__(self) -> Iterator[Batch]:
        self.complete = True
        try:
            yield from without_consuming_rng(self.data, self.signals, GRACE_SECONDS)
        except Interrupted:
            logger.warning("no dev batch has come since the signal; this dev loss is left out")
            self.complete = False


def without_consuming_rng(
    batches: Iterable[Batch], signals: StopSignals | None = None, grace: float = 0.0
) -> Iterator[Batch]:
    """The same batches, read without touching the random generators that dropout draws from.

    Raises:
        Interrupted: ``grace`` seconds after a signal, if the wait for a batch lasts as long.
    """
    waiting = functools.partial(signals.waiting, grace) if signals is not None else contextlib.nullcontext
    with preserved(), waiting():
        iterator = iter(batches)
    while True:
        with preserved(), waiting():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch
