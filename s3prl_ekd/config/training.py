"""The recipe of ``s3prl-ekd distill``: the model side, and data, optimizer, schedule and trainer beside it.

Nothing here imports torch.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Annotated, Any

from s3prl_ekd import cost
from s3prl_ekd.config.base import Config, Count, Name, OneOf, Range, Seed, Size, differences, require, say_differences
from s3prl_ekd.config.data import HOW_TO_READ, DataConfig
from s3prl_ekd.config.pruning import PruningConfig, StageConfig
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.errors import UserError


class Precision(enum.StrEnum):
    """What the networks compute in; weights, losses and the optimizer's state are float32 in every case."""

    FP32 = "32"
    BF16 = "bf16"
    FP16 = "fp16"

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        return cls.FP32 if value == 32 else None  # YAML reads an unquoted 32 as a number


class Decay(enum.StrEnum):
    """How the learning rate falls after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


Beta = Annotated[float, Range(at_least=0, less_than=1)]
Devices = Annotated[int, Range(at_least=1, at_most=65_536, hint="null means all there are")]

# Lightning's names, written down because importing Lightning takes seconds; a test compares them.
_DDP = ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")
_STRATEGIES = (
    *_DDP, *(f"{name}_find_unused_parameters_{value}" for name in _DDP for value in ("true", "false")),
    "deepspeed", *(f"deepspeed_stage_{stage}" for stage in ("1", "2", "2_offload", "3", "3_offload", "3_offload_nvme")),
    "fsdp", "fsdp_cpu_offload", "single_device", "single_xla", "single_tpu", "xla", "xla_debug",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TargetsConfig(Config):
    """Where the targets come from."""

    cache: str | None = None
    """A folder written by ``s3prl-ekd cache-targets``; null: the teachers run in training."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW (arXiv 1711.05101)."""

    lr: Annotated[float, Range(at_least=0, at_most=1)] = 2e-4
    """Learning rate at the end of the warm-up."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Decay of the averages of gradient and squared gradient."""
    eps: Annotated[float, Range(at_least=1e-30, at_most=1)] = 1e-6
    """Added to the denominator."""
    weight_decay: Annotated[float, Range(at_least=0, at_most=10)] = 0.01
    """Decoupled weight decay of matrices and convolutions; biases, norms and weight norm's magnitudes have none."""
    clip_norm: Annotated[float, Range(at_least=0, at_most=1e30)] | None = 5.0
    """Largest norm of the gradient of a step; null: no clipping."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Linear warm-up, then decay until ``trainer.max_steps``."""

    warmup: Annotated[float, Range(at_least=0, less_than=1)] = 0.07
    """Share of the steps during which the learning rate rises to ``optimizer.lr`` (DistilHuBERT: 0.07)."""
    decay: Decay = Decay.LINEAR
    """``linear``, ``cosine`` or ``constant``."""
    final: Annotated[float, Range(at_least=0, at_most=100)] = 0.0
    """Learning rate after the last step, as a share of ``optimizer.lr``; ``constant`` ignores it."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Config):
    """How long, on what, and what is written meanwhile. A step is one update of the weights, on all devices."""

    max_steps: Count = 200_000
    """Steps of the whole run, if it has no ``stages``. A resumed run may have more; its learning rate is then that of
    the longer run, which may be higher than where it stopped."""
    accumulate: Count = 1
    """Batches of each device that make a step."""
    precision: Precision = Precision.BF16
    """``32``, ``bf16`` or ``fp16``."""
    compile: bool = False
    """Whether torch.compile optimizes feed-forward blocks and heads; the first step then takes a minute more."""
    accelerator: Annotated[str, OneOf("auto", "cpu", "gpu", "cuda", "mps", "tpu")] = "auto"
    """Lightning's: ``auto``, ``gpu``, ``cpu`` ..."""
    devices: Devices | None = None
    """Devices of each node; null: all (one, on a CPU)."""
    num_nodes: Size = 1
    """Nodes."""
    strategy: Annotated[str, OneOf("auto", *_STRATEGIES)] = "auto"
    """Lightning's: ``auto``, ``ddp`` ..."""
    log_every: Count = 50
    """Steps between two lines of the log."""
    dev_every: Count = 5_000
    """Steps between two dev losses (where ``data`` names a dev set)."""
    checkpoint_every: Count = 1_000
    """Steps between two checkpoints."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints stay, besides the one with the best dev loss."""
    max_nonfinite: Count = 20
    """The run stops after so many steps in a row whose loss or gradient is not finite."""
    wandb_project: str | None = None
    """Weights & Biases project to log to (``pip install wandb``); null: no Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(DistillConfig):
    """A whole recipe: the model side, inherited, so that it can be given where a DistillConfig is asked for, and how to
    train. What is saved with a student is :attr:`distill` alone."""

    data: DataConfig
    """The speech."""
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    """Targets computed before."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over time."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Steps, devices, precision, logs, checkpoints."""
    pruning: PruningConfig | None = None
    """Gates on the student's units, trained in the first stage, at whose end the student shrinks; null: none. Without
    ``stages`` nothing trains the smaller student."""
    stages: tuple[StageConfig, ...] = ()
    """Parts of the run that follow each other, instead of ``trainer.max_steps``; empty: one, as it is."""
    seed: Seed = 0
    """Determines the student's random weights, dropout, the order of the data and the crops."""
    output: Name
    """Folder of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [stage.name for stage in self.stages]
        require(
            len({name.lower() for name in names}) == len(names),
            f"stages: names must be unique, upper case or lower, since they are folders; found {', '.join(names)}",
        )
        if self.pruning is not None:
            self._check_pruning(self.pruning)
        require(
            self.targets.cache is None or "gram" not in self.objective.terms,
            "objective.losses: gram compares frames with each other, and cached targets are rounded and put together"
            " beforehand; leave it out, or let the teachers run in training (targets.cache: null)",
        )

    def _check_pruning(self, pruning: PruningConfig) -> None:
        steps = self.stages[0].max_steps if self.stages else self.trainer.max_steps
        require(
            pruning.warmup_steps < steps,
            f"pruning.warmup_steps: {pruning.warmup_steps} steps until the budget is asked for, in a stage of {steps};"
            " give fewer, a third of them say",
        )
        if self.student.copy is None:  # a copy's sizes are not known here
            cost.allowance(pruning.budget.given, *self._student_size, pruning.units)

    @property
    def _student_size(self) -> tuple[cost.FixedSizes, cost.UnitCounts]:
        return cost.FixedSizes.of(self.student), cost.UnitCounts.of(self.student)

    @property
    def distill(self) -> DistillConfig:
        """The model side alone: student, teachers, objective and distortion."""
        return DistillConfig(**{item.name: getattr(self, item.name) for item in fields(DistillConfig)})

    def of_stage(self, number: int) -> RunConfig:
        """The recipe of a stage, from 0 on, as that of a run of its own; the student's sizes are the first stage's."""
        stage = self.stages[number]
        return replace(
            self,
            stages=(),
            pruning=self.pruning if number == 0 else None,
            trainer=replace(self.trainer, max_steps=stage.max_steps),
            optimizer=self.optimizer if stage.lr is None else replace(self.optimizer, lr=stage.lr),
            schedule=self.schedule if stage.warmup is None else replace(self.schedule, warmup=stage.warmup),
            output=str(PurePath(self.output, stage.name)),
        )

    def of_processes(self, count: int) -> RunConfig:
        """The same with ``data.batch_seconds``, where so many processes train together.

        Raises:
            UserError: ``data.global_batch_seconds`` is too little for so many.
        """
        return replace(self, data=self.data.divided(count * self.trainer.accumulate))

    def step_size(self, processes: int | None = None) -> str:
        """How much audio a step is, in words; ``processes``: how many train together, if that is known."""
        devices, accumulate = self.trainer.devices, self.trainer.accumulate
        if processes is None and devices is not None:
            processes = devices * self.trainer.num_nodes
        parts = f"{'all devices' if processes is None else f'{processes} device(s)'} x accumulate {accumulate}"
        key, seconds = self.data.given_size
        if key == "global_batch_seconds":
            each = f", {seconds / processes / accumulate:g} s" if processes is not None else ""
            return f"a step is up to {seconds:g} s of audio: data.{key}{each} for each of {parts}"
        if processes is None:
            return f"a step is up to {seconds:g} s of audio (data.{key}) x {parts}"
        return f"a step is up to {seconds * processes * accumulate:g} s of audio: data.{key} {seconds:g} x {parts}"

    def student_size(self) -> str:
        """How large the student is, and what it is pruned to, in words."""
        copied, pruning = self.student.copy, self.pruning
        if copied is not None:
            size = f"the student has the sizes of {copied!r}, which are known when that is loaded"
        else:
            size = f"the student has {cost.in_words(*self._student_size)}"
        if pruning is None:
            return size
        ((name, value),) = pruning.budget.given.items()
        if name != "sparsity":
            return f"{size}; pruned to {cost.amount_in_words(name, value)}"
        if copied is not None:
            return f"{size}; pruned to {100 * (1 - value):.4g} % of its parameters"
        kind, amount = cost.allowance(pruning.budget.given, *self._student_size, pruning.units)
        return f"{size}; pruned to {cost.amount_in_words(kind, amount)}"


FREE_ON_RESUME = frozenset(
    {"output", "targets.cache"}
    | {f"data.{key}" for key in HOW_TO_READ | {"batch_seconds", "global_batch_seconds"}}
    | {f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "log_every", "dev_every")}
    | {f"trainer.{key}" for key in ("checkpoint_every", "keep_checkpoints", "max_nonfinite", "wandb_project")}
)
"""What may change when a run is resumed, because it does not change what is computed. All other settings must stay. The
number of processes, the size of their batches and the cache's content are compared with the position in the data."""


def check_resumable(saved: Mapping[str, Any], config: RunConfig) -> None:
    """That a run of ``config`` can go on exactly where a run of the recipe ``saved`` stopped, perhaps for more steps.

    Settings that an older version did not have yet when it saved the recipe have their defaults.

    Raises:
        UserError: settings that matter differ (named, with both values), or this version does not know one.
    """
    before = RunConfig.from_saved(saved, "cannot resume: the checkpoint's recipe")
    changed = differences(_as_long_as(before, config), config, FREE_ON_RESUME)
    if changed:
        raise UserError(
            f"cannot resume: the checkpoint's recipe differs ({say_differences(changed)}); give the recipe it was"
            " started with (recipe.yaml in the run's folder; trainer.max_steps, or that of the last stage, may be"
            " raised), or another output for a new run"
        )


def _as_long_as(before: RunConfig, config: RunConfig) -> RunConfig:
    """``before`` with as many steps as ``config``, if these are more: of the whole run, or of its last stage."""
    if not (before.stages and config.stages):
        steps = max(before.trainer.max_steps, config.trainer.max_steps)
        return replace(before, trainer=replace(before.trainer, max_steps=steps))
    *stages, last = before.stages
    last = replace(last, max_steps=max(last.max_steps, config.stages[-1].max_steps))
    trainer = replace(before.trainer, max_steps=config.trainer.max_steps)  # which stages do not use
    return replace(before, trainer=trainer, stages=(*stages, last))
