"""Pre-emption: SIGTERM and SIGUSR1 ask for a checkpoint and an end, and all processes agree on the step."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from s3prl_ekd.audio.bad_recordings import Counts

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""How long a batch is still waited for after a signal, where a dev loss or other processes need it."""
_REPEATED_AFTER = 1.0  # seconds; before that it is the same signal, sent by a scheduler and by torchrun


class Preempted(Exception):  # noqa: N818 (it is no error)
    """The run stops because a signal asked it to."""


class Interrupted(Preempted):
    """The run stops while it waits for a batch."""


class StopSignals(Callback):
    """Notes the signals: :attr:`received` is read at the end of each step. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.received = False
        self._since = 0.0
        self._grace: float | None = None  # seconds; None: no batch is waited for
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.received:
            if now - self._since >= _REPEATED_AFTER:
                logger.warning("%s again: ending without a checkpoint", name)
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received, self._since = True, now
        logger.warning("%s: saving a checkpoint after this step, then stopping; a second one ends at once", name)
        self._hurry()

    def _hurry(self) -> None:
        """End the wait for a batch, if there is one, when its grace is over."""
        if self._grace == 0:
            self._give_up()
        elif self._grace is not None:
            self._before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self._give_up))
            signal.setitimer(signal.ITIMER_REAL, self._grace)

    def _give_up(self, *_: Any) -> None:
        if self._grace is not None:
            self._grace = None
            raise Interrupted("stopped while waiting for a batch")

    @contextlib.contextmanager
    def waiting(self, grace: float) -> Iterator[None]:
        """While the block waits for a batch, a signal that comes or has come ends it, ``grace`` seconds later.

        Raises:
            Interrupted: a signal has ended the wait.
        """
        self.listen()  # here too: Lightning's handlers are there until training starts, and the first batch is earlier
        self._grace = grace
        try:
            if self.received:
                self._hurry()
            yield
        finally:
            self._grace = None
            if signal.SIGALRM in self._before:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def listen(self) -> None:
        """Replace the handlers of the two signals."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._note)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs; then put back the handlers that were there before."""
        self.listen()
        try:
            yield
        finally:
            while self._before:
                signal.signal(*self._before.popitem())

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Again: Lightning has put its own SIGTERM handler in front, which talks to the other processes from within.
        self.listen()
        # Lightning 2.6 asks process 0 for signals before every batch, and waits for the device to do so.
        loop, asks = trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"
        if hasattr(loop, asks):
            setattr(loop, asks, lambda: None)


class Agreement:
    """Sums over all processes at each step, without waiting for the device: frames, requests to stop, recordings.

    The attributes are the same in every process: as of this step if there is only one process, else as of the step
    before, whose sums have arrived by now.

    Attributes:
        stop: whether some process was asked to stop.
        recordings: the counts of recordings of all processes.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.device = device
        self.world_size = world_size
        self.stop = False
        self.recordings = Counts()
        self._arriving: tuple[Tensor, torch.cuda.Event | None] | None = None

    def sum(self, frames: int, *, stop: bool, recordings: Counts) -> Tensor:
        """All processes' frames in this step, a float64 scalar on the device; the arguments are of this process."""
        if self.world_size == 1:
            self.stop, self.recordings = stop, recordings
            return self._fill(frames)
        total = torch.stack([self._fill(value) for value in (frames, stop, *recordings)])
        torch.distributed.all_reduce(total)
        if self._arriving is not None:
            arrived, event = self._arriving
            if event is not None:
                event.synchronize()
            _, votes, *counts = arrived.tolist()
            self.stop, self.recordings = votes > 0, Counts(*counts)
        self._arriving = self._send(total)
        return total[0]

    def _fill(self, value: float) -> Tensor:
        """Filled on the device, since a copy from the host would wait for it."""
        return torch.full((), float(value), dtype=torch.float64, device=self.device)

    def _send(self, total: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if total.device.type != "cuda":
            return total, None
        arriving = torch.empty(total.shape, dtype=total.dtype, pin_memory=True)
        arriving.copy_(total, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return arriving, event
