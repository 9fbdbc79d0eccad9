"""What a run says while it runs: loggers, log lines, the progress bar, and the end of a run that goes wrong."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.errors import UserError
from s3prl_ekd.training.meter import Summary

logger = logging.getLogger(__name__)

_NAMED = 20  # utterances that a message lists at most


class Report(ProgressBar):
    """Logs every ``log_every`` steps, shows a bar on a terminal, stops a run whose loss stays infinite.

    Args:
        log_every: steps between two logs.
        max_nonfinite: so many skipped steps in a row end the run.
    """

    def __init__(self, *, log_every: int, max_nonfinite: int) -> None:
        super().__init__()
        self.log_every = log_every
        self.max_nonfinite = max_nonfinite
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Lightning's wish for processes other than the first; they draw nothing anyway."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since, self._last_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                desc="distilling",
                unit="step",
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}",
            )

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if not module.step_done or module.empty_steps:
            return
        if self._bar is not None:
            self._bar.update(1)
        if trainer.global_step % self.log_every == 0 or trainer.global_step == trainer.max_steps:
            summary = module.meter.summary(module.stream.bad_recordings.bad)
            self._log(trainer, module, summary)
            if summary.skipped:
                self._skipped(trainer, module, summary)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        _write(trainer, {"dev/loss": module.dev_loss})
        if trainer.is_global_zero:
            self._say(f"step {trainer.global_step}: dev loss {module.dev_loss:.4f}")
        self._since, self._last_step = time.monotonic(), trainer.global_step

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _log(self, trainer: Trainer, module: LightningModule, summary: Summary) -> None:
        now, step = time.monotonic(), trainer.global_step
        seconds = max(now - self._since, 1e-9)
        steps = max(step - self._last_step, 1)
        self._since, self._last_step = now, step
        # The clock starts anew after a resumption or a dev loss, the summary does not.
        seconds_per_step = seconds / steps
        audio_per_step = summary.frames * FRAME_SHIFT / SAMPLE_RATE / max(summary.steps, 1)
        speed = audio_per_step / seconds_per_step
        metrics = {
            "train/loss": summary.loss,
            "train/lr": module.learning_rate,
            "train/grad_norm": summary.grad_norm,
            "train/skipped_steps": summary.skipped_ever,
            "train/bad_recordings": summary.bad_recordings,
            "train/epoch": module.position.epoch,
            "speed/hours_per_hour": speed,
            "speed/seconds_per_step": seconds_per_step,
            **{f"train/{name}": value for name, value in summary.details.items()},
        }
        if torch.cuda.is_available():
            metrics["speed/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        _write(trainer, metrics)
        if self._bar is None:
            return
        left = timedelta(seconds=round((trainer.max_steps - step) * seconds_per_step))
        text = f"loss {summary.loss:.4f}, {speed:.0f} h of audio/h, {left} left"
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            logger.info("step %d/%d: %s", step, trainer.max_steps, text)

    def _say(self, text: str) -> None:
        if self._bar is not None and not self._bar.disable:
            self._bar.write(text, file=sys.stderr)
        else:
            logger.info("%s", text)

    def _skipped(self, trainer: Trainer, module: LightningModule, summary: Summary) -> None:
        """Say which steps were not made, in each process which of its utterances are to blame; too many end the run."""
        step = trainer.global_step
        if trainer.is_global_zero:
            logger.warning(
                "%d of the steps up to %d skipped: loss or gradient not finite (%d since the run began)",
                summary.skipped, step, summary.skipped_ever,
            )  # fmt: skip
        if summary.suspects:
            logger.warning("loss or gradient not finite with: %s", _names(chain(*summary.suspects)))
        if summary.longest < self.max_nonfinite:
            return
        module.meter.forgive()  # a resumed run gets another chance
        path = trainer.checkpoint_callback.save(trainer)
        suspects = _everybodys(trainer, [name for batch in summary.suspects for name in batch])
        raise UserError(
            f"{summary.longest} steps in a row up to step {step} had a loss or gradient that is not finite; {path}"
            f" holds the weights of before. Batches with: {_names(suspects)}. Look at these recordings; lower"
            " optimizer.lr, use trainer.precision: bf16, or layer_norm_targets: true for the teachers"
        )


def _write(trainer: Trainer, metrics: dict[str, float]) -> None:
    for writer in trainer.loggers:
        writer.log_metrics(metrics, step=trainer.global_step)


def _everybodys(trainer: Trainer, names: list[str]) -> list[str]:
    """The names that any process has."""
    if trainer.world_size == 1:
        return names
    gathered: list[list[str]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(gathered, names)
    return list(chain(*gathered))


def _names(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
    return ", ".join(unique[:_NAMED]) + more
