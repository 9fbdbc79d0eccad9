"""What a run says while it runs: metrics for the loggers, log lines and a progress bar."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from itertools import chain
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor
from tqdm import tqdm

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.config.training import TrainerConfig
from s3prl_ekd.cost import amount_in_words
from s3prl_ekd.errors import UserError
from s3prl_ekd.training.checkpoints import Checkpoints
from s3prl_ekd.training.curve import expected_and_target
from s3prl_ekd.training.progress import Progress
from s3prl_ekd.training.statistics import Summary

logger = logging.getLogger(__name__)

_NAMED = 20  # utterances that a message lists at most


class RunLog(ProgressBar):
    """Logs every ``trainer.log_every`` steps, shows a bar on a terminal, ends a run whose loss stays infinite."""

    def __init__(self, progress: Progress, checkpoints: Checkpoints, config: TrainerConfig) -> None:
        super().__init__()
        self.progress = progress
        self.checkpoints = checkpoints
        self.config = config
        self._bar: tqdm[NoReturn] | None = None

    def disable(self) -> None:
        """Lightning calls this in all processes but the first; only the first has a bar."""

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
        if not self.progress.step_done or self.progress.empty_steps:
            return
        if self._bar is not None:
            self._bar.update(1)
        if trainer.global_step % self.config.log_every == 0 or trainer.global_step == trainer.max_steps:
            summary = self.progress.statistics.summary(self.progress.bad_recordings)
            self._log(trainer, summary)
            if summary.skipped:
                self._report_skipped(trainer, summary)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        _write(trainer, {"dev/loss": self.progress.dev_loss})
        if trainer.is_global_zero:
            text = f"step {trainer.global_step}: dev loss {self.progress.dev_loss:.4f}"
            if self._bar is not None and not self._bar.disable:
                self._bar.write(text, file=sys.stderr)
            else:
                logger.info("%s", text)
        self._since, self._last_step = time.monotonic(), trainer.global_step

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, module, "fit")

    def _log(self, trainer: Trainer, summary: Summary) -> None:
        now, step = time.monotonic(), trainer.global_step
        seconds = max(now - self._since, 1e-9)
        steps = max(step - self._last_step, 1)
        self._since, self._last_step = now, step
        # After a resumption or a dev loss the clock starts anew, so that `steps` may be fewer than the summary's.
        seconds_per_step = seconds / steps
        audio_per_step = summary.frames * FRAME_SHIFT / SAMPLE_RATE / max(summary.steps, 1)
        speed = audio_per_step / seconds_per_step
        metrics = {
            "train/loss": summary.loss,
            "train/lr": self.progress.learning_rate,
            "train/grad_norm": summary.grad_norm,
            "train/skipped_steps": summary.skipped_ever,
            "train/bad_recordings": summary.bad_recordings,
            "train/epoch": self.progress.position.epoch,
            "speed/hours_per_hour": speed,
            "speed/seconds_per_step": seconds_per_step,
            **{f"train/{name}": value for name, value in summary.details.items()},
            **_floats(self.progress.pruning),
        }
        if torch.cuda.is_available():
            metrics["speed/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        _write(trainer, metrics)
        if self._bar is None:
            return
        left = timedelta(seconds=round((trainer.max_steps - step) * seconds_per_step))
        text = f"loss {summary.loss:.4f}, {speed:.0f} h of audio/h, {left} left"
        if pruned := expected_and_target(metrics):
            kind, expected, target = pruned
            text += f", {amount_in_words(kind, expected)} (target {amount_in_words(kind, target)})"
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            logger.info("step %d/%d: %s", step, trainer.max_steps, text)

    def _report_skipped(self, trainer: Trainer, summary: Summary) -> None:
        """Warn of skipped steps; each process names the utterances that may be to blame. Too many end the run."""
        step = trainer.global_step
        if trainer.is_global_zero:
            logger.warning(
                "%d of the steps up to %d skipped: loss or gradient not finite (%d since the run began)",
                summary.skipped, step, summary.skipped_ever,
            )  # fmt: skip
        if summary.suspects:
            logger.warning("loss or gradient not finite with: %s", _names(summary.suspects))
        if summary.longest < self.config.max_nonfinite:
            return
        self.progress.statistics.restart_row()  # a resumed run gets another chance
        path = self.checkpoints.save(trainer)
        suspects = _of_all_processes(trainer, summary.suspects)
        raise UserError(
            f"{summary.longest} steps in a row up to step {step} had a loss or gradient that is not finite; {path}"
            f" holds the weights of before. Batches with: {_names(suspects)}. Look at these recordings; lower"
            " optimizer.lr, use trainer.precision: bf16, or layer_norm_targets: true for the teachers"
        )


def _write(trainer: Trainer, metrics: dict[str, float]) -> None:
    for writer in trainer.loggers:
        writer.log_metrics(metrics, step=trainer.global_step)


def _floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Waits for the device once."""
    together = torch.stack([value.double() for value in values.values()]).tolist() if values else []
    return dict(zip(values, together, strict=True))


def _of_all_processes(trainer: Trainer, names: list[str]) -> list[str]:
    """The names given in any process."""
    if trainer.world_size == 1:
        return names
    gathered: list[list[str]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(gathered, names)
    return list(chain(*gathered))


def _names(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
    return ", ".join(unique[:_NAMED]) + more
