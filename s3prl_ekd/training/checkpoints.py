"""Checkpoints that survive a kill at any moment: written under another name, synced, renamed.

A run's folder ``checkpoints/`` holds ``step-00001000.ckpt`` files and the links ``last.ckpt`` and ``best.ckpt``.
"""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import atomic_path
from s3prl_ekd.training.batches import DataError
from s3prl_ekd.training.progress import Progress
from s3prl_ekd.training.stopping import Interrupted, Preempted
from s3prl_ekd.weights.pickles import load_pickle_safely

logger = logging.getLogger(__name__)

RUN_KEY = "EKD_Run"  # the entry of a checkpoint that is neither Lightning's nor the student's


class SyncedCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, each complete on the disk before it has its name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint``.

        Raises:
            UserError: the disk is full or fails; nothing is left of the attempt.
        """
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)  # to memory: torch's own writer hides what goes wrong with a file
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            _sync_folder(path.parent)
        except OSError as error:
            kept = ", ".join(found.name for found in reversed(step_files(path.parent))) or "none yet"
            raise UserError(
                f"{path}: a checkpoint of {buffer.tell() / 2**20:.0f} MiB cannot be written"
                f" ({error.strerror or error}); make room and go on with --resume (checkpoints that are there: {kept})"
            ) from error


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder by step, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def newest_readable(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The newest checkpoint that is whole, and its entry :data:`RUN_KEY`; as :func:`newest_states`."""
    found = newest_states(folder)
    return (found[0], found[1][RUN_KEY]) if found is not None else None


def newest_states(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The newest checkpoint that is whole, and what it holds; None if the folder holds no checkpoint.

    Damaged ones are reported and passed over.

    Raises:
        UserError: all are damaged.
    """
    files = step_files(folder)
    for path in reversed(files):
        try:
            return path, _read(path)
        except UserError as error:
            logger.error("%s; taking the one before", error)
    if files:
        raise UserError(
            f"{folder}: none of its {len(files)} checkpoints can be read; remove them to start anew, or name another"
            " output"
        )
    return None


def _read(path: Path) -> Mapping[str, Any]:
    """A checkpoint's contents; torch.load alone would not notice a flipped bit."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises errors of many kinds for damaged files
        raise UserError(f"{path}: unreadable or incomplete ({error})") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged (checksum of {damaged})")
    states = load_pickle_safely(path)
    if not isinstance(states, Mapping) or RUN_KEY not in states:
        raise UserError(f"{path}: no checkpoint of s3prl-ekd distill")
    return states


class Checkpoints(Checkpoint):
    """Saves at intervals, at the end, for the best dev loss and when the run is asked to stop.

    Attributes:
        saved: the end of a message: which checkpoint was saved when no batch came any more.
    """

    def __init__(self, progress: Progress, folder: Path, config: RunConfig) -> None:
        self.progress = progress
        self.folder = folder
        self.config = config.trainer
        self.has_dev_loss = bool(config.data.dev_cuts)
        self.best_loss = float("inf")
        self.best_step = 0
        self.saved = ""
        self._saved_at: int | None = None  # None: no training yet in this process

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]

    def path(self, step: int) -> Path:
        """The checkpoint after ``step`` steps."""
        return self.folder / f"step-{step:08d}.ckpt"

    def save(self, trainer: Trainer) -> Path:
        """Write a checkpoint of the step just made, and return its path; every process must call it."""
        path = self.path(trainer.global_step)
        if trainer.global_step != self._saved_at:
            trainer.save_checkpoint(path, weights_only=False)
            self._saved_at = trainer.global_step
            logger.debug("checkpoint %s", path)
        if trainer.is_global_zero:
            _point(self.folder / "last.ckpt", path)
            if self.best_step:
                _point(self.folder / "best.ckpt", self.path(self.best_step))
            for old in step_files(self.folder)[: -self.config.keep_checkpoints]:
                if old != self.path(self.best_step):
                    old.unlink()
        return path

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved_at = trainer.global_step  # a resumed run's checkpoint is there

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if not self.progress.step_done:
            return
        if self.progress.stop:
            raise Preempted(f"stopped after step {trainer.global_step}{self._kept(trainer)}")
        self._raise_error(trainer)
        if self.progress.empty_steps:
            return
        # Where a dev loss is due, the checkpoint waits for it: a resumed run must know the best one so far.
        dev_loss_due = self.has_dev_loss and trainer.global_step % self.config.dev_every == 0
        if self._due(trainer) and not dev_loss_due:
            self.save(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Save the last step where no batch comes any more; of several processes, the others are within a step."""
        if isinstance(exception, Interrupted | DataError) and trainer.world_size == 1:
            self.progress.drop_unfinished_step(trainer)
            self.saved = self._kept(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        best = self.progress.dev_loss < self.best_loss
        if best:
            self.best_loss, self.best_step = self.progress.dev_loss, trainer.global_step
        if best or self._due(trainer):
            self.save(trainer)
        self._raise_error(trainer)

    def _raise_error(self, trainer: Trainer) -> None:
        if self.progress.error is not None:
            raise UserError(f"{self.progress.error}{self._kept(trainer)}")

    def _kept(self, trainer: Trainer) -> str:
        """Save what has been trained, if anything; the end of a message that says so."""
        if not trainer.global_step:
            return ""
        path = self.save(trainer) if self._saved_at is not None else self.path(trainer.global_step)
        return f"; {path} holds the weights so far"

    def _due(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.config.checkpoint_every == 0 or trainer.global_step == trainer.max_steps


def _point(link: Path, path: Path) -> None:
    """Make ``link`` a symbolic link to its neighbour ``path``, replacing it in one go."""
    if not path.exists():
        return
    with atomic_path(link) as temporary:
        temporary.symlink_to(path.name)
