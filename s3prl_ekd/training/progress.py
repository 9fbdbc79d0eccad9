"""How far a run is: what the module notes at each batch, and what the callbacks act upon."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning.pytorch import Trainer
from torch import Tensor

from s3prl_ekd.audio.batch import Batch
from s3prl_ekd.training import random_state
from s3prl_ekd.training.batches import Position, PositionedBatch
from s3prl_ekd.training.statistics import StepStatistics


@dataclass
class Progress:
    """How far a run is. DistillModule writes it, the callbacks read it.

    All but ``batch`` and ``bad_recordings`` are equal in all processes.

    Attributes:
        accumulate: batches of each process that make a step.
        statistics: losses and gradient norms since the last log; there once Lightning has set up its processes.
        batch: the batch in work, for messages; None before the first.
        position: the position in the data after the last step.
        step_done: whether the last batch completed a step.
        empty_steps: how many steps in a row, up to the last one, had no recording in any process. Such a step changes
            nothing and does not count.
        trained: whether this process has made a step that counts.
        learning_rate: of the last step that counts.
        pruning: what there is to log of the gates, of the last step; empty if there are none.
        dev_loss: the last dev loss; NaN where it could not be computed.
        bad_recordings: how many recordings this process has skipped.
        stop: whether some process has been asked to stop.
        error: why the run must end, if it must; raised once its weights are saved.
    """

    accumulate: int
    statistics: StepStatistics = field(init=False)
    batch: Batch | None = None
    position: Position = field(default_factory=Position)
    step_done: bool = False
    empty_steps: int = 0
    trained: bool = False
    learning_rate: float = 0.0
    pruning: dict[str, Tensor] = field(default_factory=dict)
    dev_loss: float = float("nan")
    bad_recordings: int = 0
    stop: bool = False
    error: str | None = None
    # The step in work: the position after its batches, their number, and the random generators before the first.
    _reached: Position = field(default_factory=Position)
    _batches: int = 0
    _before: random_state.States = field(default_factory=dict)

    def start_at(self, position: Position) -> None:
        """Begin, or go on, at a position in the data."""
        self.position = self._reached = position

    def begin_batch(self, batch: PositionedBatch) -> None:
        """Note that a batch is in work."""
        self._reached, self.batch, self.step_done = batch.after, batch.batch, False
        self._batches += 1

    def begin_step(self) -> None:
        """Note that all batches so far are part of finished steps."""
        self.position, self._batches = self._reached, 0
        if self.accumulate > 1:
            self._before = random_state.capture()

    def drop_unfinished_step(self, trainer: Trainer) -> None:
        """Forget the batches since the last step, so that a checkpoint of that step can be saved."""
        if self._batches:
            self.uncount_batches(trainer, steps=0)
            random_state.restore(self._before)

    def uncount_batches(self, trainer: Trainer, *, steps: int) -> None:
        """Have Lightning forget the batches of the step in work; ``steps``: 1 if that step was made, else 0.

        Afterwards everything that Lightning derives from its counters (``global_step``, when a dev loss is due, what a
        checkpoint says) is as if they had not been.
        """
        loop = trainer.fit_loop.epoch_loop
        optimizer = loop.automatic_optimization.optim_progress.optimizer
        counts = (
            (loop.batch_progress, self._batches),
            (optimizer.zero_grad, 1),
            (optimizer.step, steps),
            (loop.scheduler_progress, steps),
        )
        for progress, count in counts:
            for tracker in (progress.total, progress.current):
                for name, value in vars(tracker).items():
                    setattr(tracker, name, value - count)
        if steps:
            loop._batches_that_stepped -= steps
            loop._skip_next_val = True  # the step before may have had its dev loss
        self._batches = 0
