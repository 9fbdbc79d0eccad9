"""Steps and batches that Lightning has counted and shall not have."""

from __future__ import annotations

from lightning.pytorch import Trainer


def uncount(trainer: Trainer, *, batches: int, steps: int) -> None:
    """Take back the last ``batches``, which belong to one step; ``steps``: 1 if that was made, else 0.

    Afterwards everything that Lightning derives from its counters (``global_step``, when a dev loss is due, what a
    checkpoint says) is as if they had not been.
    """
    loop = trainer.fit_loop.epoch_loop
    optimizer = loop.automatic_optimization.optim_progress.optimizer
    counts = (
        (loop.batch_progress, batches),
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
