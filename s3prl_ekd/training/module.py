"""The Distiller as a LightningModule: one step, its data, its checkpoint. Lightning does the rest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.audio.bad_recordings import Counts
from s3prl_ekd.audio.batch import Batch
from s3prl_ekd.config.training import Precision, RunConfig
from s3prl_ekd.distiller import Distiller, teacher_states
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.encoder import FeedForward
from s3prl_ekd.student.checkpoint import ARCHITECTURE_KEY, RECIPE_KEY
from s3prl_ekd.student.heads import PredictionHead
from s3prl_ekd.targets import Fits
from s3prl_ekd.training import random_state
from s3prl_ekd.training.batches import DevBatches, EndlessBatches, Position, PositionedBatch
from s3prl_ekd.training.checkpoints import RUN_KEY
from s3prl_ekd.training.optim import learning_rate_factor, parameter_groups
from s3prl_ekd.training.progress import Progress
from s3prl_ekd.training.pruning import add_penalty_gradient, new_gates, shares_left
from s3prl_ekd.training.stages import Stage
from s3prl_ekd.training.statistics import StepStatistics
from s3prl_ekd.training.stopping import Agreement, StopSignals
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

if TYPE_CHECKING:  # Lhotse takes seconds to import
    from s3prl_ekd.cuts.stream import BatchStream, EpochLoader

logger = logging.getLogger(__name__)

EMPTY_STEPS = 20
"""So many steps in a row without a recording in any process end the run."""

_HALF_MAX = 65504.0  # the largest float16


class Inputs(NamedTuple):
    """What one process trains with: its part of the training and dev speech (None: no dev loss), and the Distiller."""

    stream: BatchStream
    dev: EpochLoader | None
    distiller: Distiller


class OpenInputs(Protocol):
    """Opens what one process trains with."""

    def __call__(self, config: RunConfig, rank: int, world_size: int, fits: Fits | None = None) -> Inputs:
        """The inputs of process ``rank`` of ``world_size``; ``fits`` of a recipe with units or components."""


class DistillModule(LightningModule):
    """Student and heads in training.

    Attributes:
        progress: how far the run is, for the callbacks.
        distiller: the model; there once Lightning has set up its processes.
    """

    distiller: Distiller

    def __init__(self, stage: Stage, open_inputs: OpenInputs, progress: Progress, signals: StopSignals) -> None:
        """Nothing is read or built before Lightning has set up its processes."""
        super().__init__()
        self.stage = stage
        self.config = stage.config
        self.progress = progress
        self._open_inputs = open_inputs
        self._signals = signals
        self._saved_ranks: dict[str, Tensor] | None = None
        self._frames = 0  # of this process in the step in work

    # ---- setting up

    def setup(self, stage: str) -> None:
        trainer = self.trainer
        config = self.stage.resolved().of_processes(trainer.world_size)
        assert config.data.batch_seconds is not None, "of_processes() gives it"
        # The loss of a batch is its sum over frames divided by this. How many frames all batches of a step have in all
        # processes is only known at the step's end; the gradient is corrected then.
        self._nominal_frames = config.data.batch_seconds * SAMPLE_RATE / FRAME_SHIFT
        if trainer.is_global_zero:
            logger.info("%s", self.config.step_size(trainer.world_size))
        inputs = self._open_inputs(config, trainer.global_rank, trainer.world_size)
        self.stream, self.distiller = inputs.stream, inputs.distiller
        self.dev = DevBatches(inputs.dev, self._signals) if inputs.dev is not None else None
        self._data_identity = self.stream.identity()
        for teacher in self.distiller.teachers:
            teacher.to(self.device)
        if self.config.pruning is not None:
            self.distiller.gates = new_gates(self.config.pruning, self.distiller.student, self.config.seed)
        self._agreement = Agreement(self.device, trainer.world_size)
        self.progress.statistics = StepStatistics(self.device, trainer.world_size)
        if self.config.trainer.compile:
            compile_blocks(self.distiller, *(teacher.module for teacher in self.distiller.teachers))

    def train_dataloader(self) -> EndlessBatches:
        return EndlessBatches(self.stream, self.progress.position, self._signals, self.trainer.world_size)

    def val_dataloader(self) -> DevBatches | list[Batch]:
        return self.dev if self.dev is not None else []

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config, trainer, gates = self.config.optimizer, self.config.trainer, self.distiller.gates
        groups = parameter_groups(self.distiller, config.weight_decay, leave_out=gates)
        factors: list[Callable[[int], float]] = [
            lambda step: learning_rate_factor(step, trainer.max_steps, self.config.schedule)
        ] * len(groups)
        if gates is not None:
            assert self.config.pruning is not None, "it is what makes gates"
            of_gates = gates.parameter_groups(self.config.pruning.learning_rate)
            groups, factors = groups + of_gates, factors + [lambda step: 1.0] * len(of_gates)
        optimizer = torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            # With fp16 the gradient must be unscaled before it is clipped, which Lightning cannot do for a fused one.
            fused=trainer.precision is not Precision.FP16,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """The last hook of a step before those of the callbacks, which must not see an empty step counted."""
        if self.progress.empty_steps:
            self.progress.uncount_batches(self.trainer, steps=1)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_fit_start(self) -> None:
        """After the stage's own checkpoint, if it has one, is loaded."""
        before = self.stage.before
        if before is not None and self._saved_ranks is None:
            self._go_on_after(before.hand_over(self.distiller)[RUN_KEY])

    def on_train_start(self) -> None:
        if self._saved_ranks is None:
            # The student's random weights are equal in all processes; dropout must differ.
            seed_everything(self.config.seed + self.global_rank, verbose=False)
        else:
            random_state.restore(self._saved_ranks)
            self._saved_ranks = None
            self._follow_max_steps()
        self.progress.begin_step()

    def _follow_max_steps(self) -> None:
        """Correct the learning rate of a run that goes on for more steps: the checkpoint has the shorter run's."""
        schedule, groups = self._schedule, self._schedule.optimizer.param_groups
        rates = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        if rates != [group["lr"] for group in groups]:
            logger.info("learning rate %.4g instead of %.4g, since max_steps is another", rates[0], groups[0]["lr"])
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    # ---- a step

    def training_step(self, positioned: PositionedBatch, index: int) -> Tensor:
        """The loss of one batch, to be accumulated and averaged over processes."""
        self.progress.begin_batch(positioned)
        batch = positioned.batch
        if batch.lengths.numel() == 0:
            # Zero, with a gradient for every parameter: a process without a recording must step with the others.
            return torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0.0
        first = self.trainer.global_step == 0 and self._frames == 0 and batch.cached is None
        if first and self.config.trainer.precision is Precision.FP16:
            self._warn_of_large_targets(batch)
        output = self.distiller(batch, details=self._is_logged)
        self._frames += output.frames
        sums = {name: value * output.frames for name, value in output.metrics.items()}
        self.progress.statistics.add_batch(sums, batch.utterances)
        loss = output.loss * (output.frames / self._nominal_frames)
        if self.distiller.gates is not None:
            # A gradient of zero for the multipliers, which no batch depends on: DDP waits for one of every parameter.
            loss = loss + 0.0 * self.distiller.gates.budget.lambdas.sum()
        # A loss that is not finite can have a finite gradient (an L1 distance to infinity has). Made NaN, its gradient
        # is NaN too, and with the sum over processes that of all of them.
        return loss * torch.where(torch.isfinite(sums["loss"]), 1.0, math.nan)

    @property
    def _is_logged(self) -> bool:
        """Whether the step in work has a line in the log."""
        return (self.trainer.global_step + 1) % self.config.trainer.log_every == 0

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """End a step: make the gradient that of the mean over all real frames, clip it, skip it if it is not finite."""
        progress, recordings = self.progress, self.stream.bad_recordings
        frames = self._agreement.sum(self._frames, stop=self._signals.received, recordings=recordings.counts)
        progress.step_done, progress.stop = True, self._agreement.stop
        progress.bad_recordings = recordings.bad
        progress.error = recordings.judge(self._agreement.recordings)
        # Only a process without a frame has to ask the device whether another one has some, and to wait for it.
        if self._frames == 0 and frames.item() == 0:
            self._skip_empty_step()
            return
        progress.empty_steps = self._frames = 0
        progress.trained, progress.learning_rate = True, optimizer.param_groups[0]["lr"]
        batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
        correction = self._nominal_frames * batches / frames.clamp(min=1)
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, correction.float())
        gates = self.distiller.gates
        # Without the gates: what the budget asks of them, which may be far more than the batches do, must not make the
        # step of the weights smaller. Their own is what Adam makes of it, however long their gradient is.
        of_gates = set() if gates is None else set(gates.parameters())
        weights = [parameter for parameter in self.parameters() if parameter not in of_gates]
        norm = torch.nn.utils.clip_grad_norm_(weights, self.config.optimizer.clip_norm or math.inf)
        skipped = ~torch.isfinite(norm)
        if gates is not None:
            alphas = gates.hard_concrete.log_alpha.grad
            assert alphas is not None, "each batch has one, or the step is empty"
            skipped |= ~torch.isfinite(alphas).all()
            progress.pruning = add_penalty_gradient(gates, self.trainer.global_step)
            progress.pruning |= shares_left(gates) if self._is_logged else {}
        if optimizer.defaults["fused"]:
            # As a GradScaler tells a fused optimizer which step to skip; torch's types do not know the attribute.
            optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        progress.statistics.end_step(frames, norm, skipped)
        progress.begin_step()

    def _skip_empty_step(self) -> None:
        progress = self.progress
        progress.empty_steps += 1
        if progress.empty_steps >= EMPTY_STEPS and progress.error is None:
            progress.error = (
                f"not one usable recording in {progress.empty_steps} steps in a row{self.stream.bad_recordings.hint};"
                " see whether their storage is still there"
            )
        for parameter in self.parameters():
            parameter.grad = None  # the optimizer passes over it

    def _warn_of_large_targets(self, batch: Batch) -> None:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            distiller = self.distiller
            outputs = teacher_states(distiller.config, distiller.teachers, batch, distiller.fits)
        for teacher, output in zip(self.distiller.aggregator.teachers, outputs, strict=True):
            for slot, state in zip(teacher.slot_names, output.rows, strict=False):  # units come after the slots
                largest, norm = state.abs().max().item(), state.norm(dim=-1).max().item()
                if not (largest < _HALF_MAX and norm < math.sqrt(_HALF_MAX)):
                    logger.warning(
                        "teacher %r, layer %s: values up to %.4g, norms up to %.4g; float16 holds neither values nor"
                        " squared norms above %.0f. Use trainer.precision: bf16, or layer_norm_targets: true",
                        teacher.name, slot, largest, norm, _HALF_MAX,
                    )  # fmt: skip

    # ---- dev loss

    def on_validation_epoch_start(self) -> None:
        self._dev_sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # of losses, of frames

    def validation_step(self, batch: Batch, index: int) -> None:
        self.progress.batch = batch
        if batch.lengths.numel():
            output = self.distiller(batch)
            self._dev_sums += torch.stack([output.loss.double(), torch.ones_like(output.loss).double()]) * output.frames

    def on_validation_epoch_end(self) -> None:
        assert self.dev is not None, "no dev loss without dev data"
        recordings = self.dev.data.bad_recordings
        if not self.dev.complete:
            self._dev_sums += math.nan
        sums = torch.cat([self._dev_sums, torch.tensor(recordings.counts, dtype=torch.float64).to(self.device)])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        loss_sum, frames, *counts = sums.tolist()
        self.progress.dev_loss = loss_sum / frames if frames else math.nan
        self.progress.error = recordings.judge(Counts(*counts))
        if self.progress.error is None and not frames:
            self.progress.error = f"data.dev_cuts: not one usable recording{recordings.hint}"

    # ---- checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = random_state.capture() | {"meter": self.progress.statistics.state()}
        checkpoint[RUN_KEY] = {
            "recipe": self.stage.run.to_mapping(),
            "epoch": self.progress.position.epoch,
            "consumed": self.progress.position.consumed,
            "processes": self.trainer.world_size,
            "data": self._data_identity,
            "ranks": {name: self._gather(state) for name, state in states.items()},
        }
        # As in a checkpoint of s3prl's runner, so that one function reads a student from both. The tensors are those of
        # `state_dict`, and stored once.
        checkpoint[RECIPE_KEY] = self.config.distill.to_mapping()
        checkpoint[CHECKPOINT_KEY] = {
            name.removeprefix("distiller."): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith(("distiller.student.", "distiller.heads."))
        }
        checkpoint[ARCHITECTURE_KEY] = self.distiller.student.config.to_mapping()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        run = checkpoint[RUN_KEY]
        self._go_on_after(run)
        self.progress.statistics.load_state(run["ranks"]["meter"][self.global_rank])

    def _go_on_after(self, run: Mapping[str, Any]) -> None:
        """Go on in the data, and with the random numbers, where a checkpoint was written.

        Raises:
            UserError: it was by another number of processes, or with other data.
        """
        if run["processes"] != self.trainer.world_size:
            raise UserError(
                f"cannot resume with {self.trainer.world_size} processes: the checkpoint was written by"
                f" {run['processes']}, and the rest of the epoch is divided among so many; give trainer.devices and"
                " num_nodes accordingly"
            )
        self.stream.require_identity(run["data"])
        self.progress.start_at(Position(run["epoch"], run["consumed"]))
        self._saved_ranks = {name: states[self.global_rank] for name, states in run["ranks"].items()}

    def _gather(self, state: Tensor) -> Tensor:
        """One row per process, on the CPU."""
        if self.trainer.world_size == 1:
            return state.cpu().unsqueeze(0)
        rows = [torch.empty_like(state, device=self.device) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(rows, state.to(self.device))
        return torch.stack(rows).cpu()


def compile_blocks(*models: nn.Module) -> None:
    """Compile feed-forward blocks and heads; what also gets lengths would be compiled anew for each batch."""
    kinds = FeedForward | PredictionHead
    blocks = [module for model in models for module in model.modules() if isinstance(module, kinds)]
    # Layers of a pruned student differ in size, and each size is compiled by itself; torch would stop after eight.
    limits = torch._dynamo.config  # the name that torch 2.6 has, too
    limits.cache_size_limit = max(limits.cache_size_limit, len(blocks))
    for block in blocks:
        block.compile(dynamic=True)
