"""What s3prl's pretraining runner reads from its YAML, as far as a mistake would pass unnoticed."""

from __future__ import annotations

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


_SECTIONS = ("runner", "optimizer", "scheduler", "pretrain_expert")


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Check a configuration, ``-o`` applied, but for ``pretrain_expert``, which belongs to the recipe.

    Raises:
        UserError: a section or key that s3prl would ignore, a value that cannot be.
    """
    for name in config:
        if name not in _SECTIONS:
            raise UserError(f"{where}: unknown section {name!r}; {nearest(name, _SECTIONS)}")
    try:
        if not isinstance(config.get("runner"), Mapping):
            raise UserError("has no section 'runner'")
        RunnerConfig.from_mapping(config["runner"], "runner")
        check_training(config, package="")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
