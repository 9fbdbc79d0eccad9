"""What s3prl's pretraining runner reads from its YAML, checked before it answers a mistake with a traceback."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from s3prl_ekd.config.base import Config, Count, Range
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.s3prl_plugin.runners.optimizer_config import check_training


@dataclass(frozen=True, kw_only=True)
class RunnerConfig(Config):
    """The section ``runner``; names and meaning are s3prl's."""

    total_steps: Count
    """Updates in all; the learning rate's schedule ends there. Counts where n_epochs is 0 or less."""
    n_epochs: Annotated[int, Range(at_most=10**12)] = -1
    """If positive, train for so many epochs instead."""
    gradient_clipping: Annotated[float, Range(more_than=0, at_most=1e30)]
    """Largest norm of the gradient."""
    gradient_accumulate_steps: Count
    """Batches of one update."""
    log_step: Count
    """Updates between two logs."""
    save_step: Count
    """Updates between two checkpoints."""
    max_keep: Count
    """Checkpoints to keep."""
    fp16: bool = False
    """Mixed precision with float16 (GPU only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("log_step", self.log_step), ("save_step", self.save_step)):
            if self.n_epochs <= 0 and value >= self.total_steps:
                raise UserError(f"runner.{name}: must be below runner.total_steps {self.total_steps}, found {value}")


_SECTIONS = ("runner", "optimizer", "pretrain_expert")
_OPTIONAL_SECTIONS = ("scheduler",)


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Check all but ``pretrain_expert``, which belongs to the recipe.

    Args:
        config: the whole configuration of the runner, ``-o`` applied.
        where: its name, for messages.

    Raises:
        UserError: a section or key that is missing or unknown, a value that cannot be.
    """
    for name in _SECTIONS:
        if not isinstance(config.get(name), Mapping):
            raise UserError(f"{where}: has no section {name!r}; is it a configuration for run_pretrain?")
    for name in config:
        if name not in _SECTIONS + _OPTIONAL_SECTIONS:
            raise UserError(f"{where}: unknown section {name!r}; {nearest(name, _SECTIONS + _OPTIONAL_SECTIONS)}")
    try:
        RunnerConfig.from_mapping(config["runner"], "runner")
        if "datarc" not in config["pretrain_expert"]:
            raise UserError("missing key 'pretrain_expert.datarc'")
        check_training(config, sys.modules["optimizers"], sys.modules["schedulers"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
