"""The Distiller as a LightningModule: one step, its data, its checkpoint. Lightning does the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import BadRecordings, Counts
from s3prl_ekd.audio.batch import Batch, empty_batch
from s3prl_ekd.config.training import Precision, RunConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.encoder import FeedForward
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.heads import PredictionHead
from s3prl_ekd.training import random_state
from s3prl_ekd.training.batches import EndlessBatches, Placed, Position, Stream, quiet
from s3prl_ekd.training.checkpoints import RUN_KEY
from s3prl_ekd.training.meter import Meter
from s3prl_ekd.training.optim import learning_rate_factor, parameter_groups
from s3prl_ekd.training.stopping import GRACE_SECONDS, Agreement, Interrupted, StopSignals
from s3prl_ekd.training.uncounted import uncount
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

logger = logging.getLogger(__name__)

OpenData = Callable[[RunConfig, int, int], tuple[Stream, Iterable[Batch] | None]]
"""(recipe, rank, number of processes) -> training data, dev data of this process (None: no dev set)."""

_HALF_MAX = 65504.0  # the largest float16
_INTERRUPTED = "dev batches that did not come"  # the one utterance of a batch that stands for them


class DistillModule(LightningModule):
    """Student and heads in training.

    Attributes:
        position: the place in the data after the last step.
        step_done: whether the last batch completed a step.
        empty_steps: how many steps in a row up to the last one had no recording in any process. Such a step changes
            nothing and does not count.
        learning_rate: of the last step that was not empty.
        dev_loss: the last dev loss.
        too_many_bad: what to say if too many recordings of all processes are bad, equal in all of them; else None.
        batch: the batch in work, for messages.
    """

    def __init__(
        self,
        config: RunConfig,
        build: Callable[[RunConfig], Distiller],
        open_data: OpenData,
        signals: StopSignals,
    ) -> None:
        """Nothing is read or built before Lightning has set up its processes.

        Args:
            config: the recipe.
            build: makes the Distiller, teachers included.
            open_data: opens the data.
            signals: knows whether the run is asked to stop.
        """
        super().__init__()
        self.config = config
        self.position = Position()
        self.step_done = False
        self.empty_steps = 0
        self.learning_rate = math.nan
        self.dev_loss = math.nan
        self.too_many_bad: str | None = None
        self.batch: Batch | None = None
        self._build = build
        self._open_data = open_data
        self._signals = signals
        self._saved_ranks: dict[str, Tensor] | None = None
        # The step so far: where its batches end, how many they are, their frames in this process.
        self._reached = self.position
        self._batches = self._frames = 0
        self._drawn: random_state.States = {}  # generators after the last step, where a step has several batches

    # ---- setting up

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        config = self.config.of_processes(trainer.world_size)
        # The loss of a batch is its sum over frames divided by this; what the sum of all processes' and accumulated
        # batches' frames is, is only known at the end of a step, and the gradient corrected then.
        self._nominal_frames = config.data.batch_seconds * SAMPLE_RATE / FRAME_SHIFT
        if trainer.is_global_zero:
            logger.info("%s", self.config.step_size(trainer.world_size))
        self.stream, self.dev = self._open_data(config, trainer.global_rank, trainer.world_size)
        self._data_identity = self.stream.identity()
        self.distiller = self._build(self.config)
        for teacher in self.distiller.teachers:
            teacher.to(self.device)
        self.agreement = Agreement(self.device, trainer.world_size)
        self.meter = Meter(self.device, trainer.world_size)
        if self.config.trainer.compile:
            self._compile()

    def _compile(self) -> None:
        """Compile what gets tensors alone; the rest also gets a batch's lengths, and would be compiled for each one."""
        # Cached targets have no module.
        teachers = [teacher.module for teacher in self.distiller.teachers if hasattr(teacher, "module")]
        for part in (self.distiller, *teachers):
            for module in part.modules():
                if isinstance(module, FeedForward | PredictionHead):
                    module.compile(dynamic=True)

    def train_dataloader(self) -> EndlessBatches:
        return EndlessBatches(self.stream, self.position, self._signals, self.trainer.world_size)

    def val_dataloader(self) -> Iterable[Batch]:
        return _DevBatches(self.dev, self._signals) if self.dev is not None else []

    def transfer_batch_to_device(self, batch: Placed | Batch, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, Placed):
            return Placed(batch.batch.to(device), batch.after)
        return batch.to(device)

    def configure_optimizers(self) -> dict[str, Any]:
        settings, trainer = self.config.optimizer, self.config.trainer
        optimizer = torch.optim.AdamW(
            parameter_groups(self.distiller, settings.weight_decay),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            # With fp16 the gradient must be unscaled before it is clipped, which Lightning cannot do for a fused one.
            fused=trainer.precision is not Precision.FP16,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, trainer.max_steps, self.config.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's last word on a step before the callbacks'."""
        if self.empty_steps:
            uncount(self.trainer, batches=self._batches, steps=1)
            self._batches = 0
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_train_start(self) -> None:
        if self._saved_ranks is None:
            # The student started equal everywhere; from here on each process drops out its own units.
            seed_everything(self.config.seed + self.global_rank, verbose=False)
        else:
            random_state.restore(self._saved_ranks)
            self._saved_ranks = None
            self._follow_max_steps()
        self._end_of_step()

    def _follow_max_steps(self) -> None:
        """A run that goes on for more steps: the checkpoint's learning rate is that of the shorter run."""
        schedule, groups = self.lr_schedulers(), self.optimizers().param_groups
        rates = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        if rates != [group["lr"] for group in groups]:
            logger.info("learning rate %.4g instead of %.4g, since max_steps is another", rates[0], groups[0]["lr"])
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def _end_of_step(self) -> None:
        self.position, self._batches = self._reached, 0
        if self.trainer.accumulate_grad_batches > 1:
            self._drawn = random_state.capture()

    # ---- a step

    def training_step(self, placed: Placed, index: int) -> Tensor:
        """The loss of one batch, to be accumulated and averaged over processes."""
        self._reached, self.batch, self.step_done = placed.after, placed.batch, False
        self._batches += 1
        if placed.batch.lengths.numel() == 0:
            return self._nothing()
        first = self.trainer.global_step == 0 and self._frames == 0 and placed.batch.cached is None
        if first and self.config.trainer.precision is Precision.FP16:
            self._warn_of_large_targets(placed.batch)
        details = (self.trainer.global_step + 1) % self.config.trainer.log_every == 0
        output = self.distiller(placed.batch, details=details)
        self._frames += output.frames
        metrics = {name: value * output.frames for name, value in output.metrics.items()}
        loss_sum = metrics.pop("loss")
        self.meter.add_batch(loss_sum, metrics, placed.batch.utterances)
        loss = output.loss * (output.frames / self._nominal_frames)
        # A loss that is not finite can have a finite gradient (an L1 distance to infinity has); a NaN cannot, and the
        # sum over processes then tells all of them.
        return loss * torch.where(torch.isfinite(loss_sum), 1.0, math.nan)

    def _nothing(self) -> Tensor:
        """A zero loss that still has a gradient for every parameter: this process must step with the others."""
        return sum(parameter.sum() for parameter in self.parameters()) * 0.0

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """End a step: make the gradient that of the mean over all real frames, clip it, skip it if it is not finite."""
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        recordings = self.stream.bad_recordings
        frames = self.agreement.sum(self._frames, stop=self._signals.received, recordings=recordings.counts)
        self.too_many_bad = recordings.judge(self.agreement.recordings)
        self.step_done = True
        # Who has heard nothing waits for the device, to know whether the others have; who has heard something knows.
        if self._frames == 0 and frames.item() == 0:
            self.empty_steps += 1
            for parameter in parameters:
                parameter.grad = None  # the optimizer passes over it
            return
        self.empty_steps = self._frames = 0
        self.learning_rate = optimizer.param_groups[0]["lr"]
        batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
        correction = self._nominal_frames * batches / frames.clamp(min=1)
        torch._foreach_mul_([parameter.grad for parameter in parameters], correction.float())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip_norm or math.inf)
        skipped = ~torch.isfinite(norm)
        if optimizer.defaults["fused"]:
            optimizer.found_inf = skipped.float()  # as from a GradScaler, which sees to it otherwise
        self.meter.end_step(frames, norm, skipped)
        self._end_of_step()

    def drop_unfinished_step(self) -> None:
        """Forget the batches since the last step, to save a checkpoint of that."""
        if self._batches:
            uncount(self.trainer, batches=self._batches, steps=0)
            random_state.restore(self._drawn)
            self._batches = 0

    def learnt(self) -> bool:
        """Whether some step of the run has changed the weights; waits for the device."""
        return self.trainer.global_step > self.meter.values["skipped_ever"].item()

    def _warn_of_large_targets(self, batch: Batch) -> None:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states, _ = self.distiller.hidden_states(batch)
        for source, layers in zip(self.distiller.sources, states, strict=True):
            for layer, state in zip(source.layers, layers, strict=True):
                largest, norm = state.abs().max().item(), state.norm(dim=-1).max().item()
                if not (largest < _HALF_MAX and norm < math.sqrt(_HALF_MAX)):
                    logger.warning(
                        "teacher %r, layer %d: values up to %.4g, norms up to %.4g; float16 holds neither values nor"
                        " squared norms above %.0f. Use trainer.precision: bf16, or layer_norm_targets: true",
                        source.name, layer, largest, norm, _HALF_MAX,
                    )  # fmt: skip

    # ---- dev loss

    def on_validation_epoch_start(self) -> None:
        self._dev = torch.zeros(2, dtype=torch.float64, device=self.device)  # sum of losses, frames

    def validation_step(self, batch: Batch, index: int) -> None:
        self.batch = batch
        if batch.utterances == (_INTERRUPTED,):
            self._dev += math.nan
        elif batch.lengths.numel():
            output = self.distiller(batch)
            self._dev += torch.stack([output.loss.double(), torch.ones_like(output.loss).double()]) * output.frames

    def on_validation_epoch_end(self) -> None:
        recordings = getattr(self.dev, "bad_recordings", None) or BadRecordings()
        counts = torch.tensor(recordings.counts, dtype=torch.float64)
        sums = torch.cat([self._dev, counts.to(self.device)])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        total, frames, *counts = sums.tolist()
        self.dev_loss = total / frames if frames else math.nan
        self.too_many_bad = recordings.judge(Counts(*counts))
        if not frames:
            self.too_many_bad = self.too_many_bad or f"data.dev_cuts: not one usable recording{recordings.hint}"

    # ---- checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = random_state.capture() | {"meter": self.meter.state()}
        checkpoint[RUN_KEY] = {
            "recipe": self.config.to_mapping(),
            "epoch": self.position.epoch,
            "consumed": self.position.consumed,
            "processes": self.trainer.world_size,
            "data": self._data_identity,
            "ranks": {name: self._gather(state) for name, state in states.items()},
        }
        # As in a checkpoint of s3prl's runner, so that whoever reads a student from that reads it from this. The
        # tensors are those of `state_dict` and stored once.
        checkpoint[RECIPE_KEY] = self.config.distill.to_mapping()
        checkpoint[CHECKPOINT_KEY] = {
            name.removeprefix("distiller."): tensor for name, tensor in checkpoint["state_dict"].items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint[RUN_KEY]
        if run["processes"] != self.trainer.world_size:
            raise UserError(
                f"cannot resume with {self.trainer.world_size} processes: the checkpoint was written by"
                f" {run['processes']}, and the rest of the epoch is divided among so many; give trainer.devices and"
                " num_nodes accordingly"
            )
        self.stream.require_identity(run["data"])
        self.position = self._reached = Position(run["epoch"], run["consumed"])
        own = {name: states[self.global_rank] for name, states in run["ranks"].items()}
        self.meter.load_state(own.pop("meter"))
        self._saved_ranks = own

    def _gather(self, state: Tensor) -> Tensor:
        """One row per process, on the CPU."""
        if self.trainer.world_size == 1:
            return state.cpu().unsqueeze(0)
        rows = [torch.empty_like(state, device=self.device) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(rows, state.to(self.device))
        return torch.stack(rows).cpu()


class _DevBatches:
    """Dev batches, read without touching the random generators.

    Where a signal has come and no batch comes any more, one that makes the dev loss NaN is the last.
    """

    def __init__(self, batches: Iterable[Batch], signals: StopSignals) -> None:
        self.batches = batches
        self.signals = signals

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from quiet(self.batches, self.signals, GRACE_SECONDS)
        except Interrupted:
            logger.warning("no dev batch has come since the signal; this dev loss is left out")
            yield replace(empty_batch(), utterances=(_INTERRUPTED,))
