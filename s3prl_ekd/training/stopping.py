"""Pre-emption: SIGTERM and SIGUSR1 ask for a checkpoint and an end, and all processes agree on the step."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):  # noqa: N818 (it is no error)
    """The run has saved a checkpoint because a signal asked it to stop."""


class StopSignals(Callback):
    """Notes the signals; whoever finishes a step asks :attr:`received`."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        logger.warning("%s: saving a checkpoint after this step, then stopping", signal.Signals(number).name)

    def listen(self) -> None:
        """Replace the handlers of :data:`SIGNALS`."""
        for number in SIGNALS:
            self._before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._note)

    def unlisten(self) -> None:
        """Put the handlers back that were there before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Again: Lightning has put its own SIGTERM handler in front, which talks to the other processes from within.
        self.listen()
        loop = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            # Lightning 2.6 asks process 0 for signals before every batch, and waits for the device to do so.
            loop._broadcast_sigterm_tensor = lambda: None


class Agreement:
    """Sums over all processes at each step, without waiting for the device: real frames, wishes to stop, recordings.

    The attributes are the same in every process: as of this step if there is only one process, else as of the step
    before, whose sums have arrived by now.

    Attributes:
        stop: whether some process had a wish to stop.
        read: recordings that all have read so far.
        bad: how many of them were bad.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.device = device
        self.world_size = world_size
        self.stop = False
        self.read = self.bad = 0
        self._arriving: tuple[Tensor, torch.cuda.Event | None] | None = None

    def sum(self, frames: int, *, stop: bool, read: int = 0, bad: int = 0) -> Tensor:
        """All processes' frames, a float64 scalar on the device.

        Args:
            frames: of this process in this step.
            stop: whether it has a wish to stop.
            read: recordings that it has read so far.
            bad: how many of them were bad.
        """
        # Filled on the device, since a copy from the host would wait for it.
        total = torch.stack(
            [
                torch.full((), float(value), dtype=torch.float64, device=self.device)
                for value in (frames, stop, read, bad)
            ]
        )
        if self.world_size == 1:
            self.stop, self.read, self.bad = stop, read, bad
            return total[0]
        torch.distributed.all_reduce(total)
        if self._arriving is not None:
            arrived, event = self._arriving
            if event is not None:
                event.synchronize()
            _, votes, self.read, self.bad = (round(value) for value in arrived.tolist())
            self.stop = votes > 0
        self._arriving = self._send(total)
        return total[0]

    def _send(self, total: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if total.device.type != "cuda":
            return total, None
        arriving = torch.empty(total.shape, dtype=total.dtype, pin_memory=True)
        arriving.copy_(total, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return arriving, event
