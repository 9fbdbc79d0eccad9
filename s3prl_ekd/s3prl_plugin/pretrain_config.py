"""What s3prl's pretraining runner reads from its YAML, checked before it answers a mistake with a traceback."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s3prl_ekd.config import Config
from s3prl_ekd.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class RunnerConfig(Config):
    """The section ``runner``; names and meaning are s3prl's."""

    total_steps: int
    """Updates in all; the learning rate's schedule ends there. Counts where n_epochs is 0 or less."""
    n_epochs: int = -1
    """If positive, train for so many epochs instead."""
    gradient_clipping: float
    """Largest norm of the gradient."""
    gradient_accumulate_steps: int
    """Batches of one update."""
    log_step: int
    """Updates between two logs."""
    save_step: int
    """Updates between two checkpoints."""
    max_keep: int
    """Checkpoints to keep."""
    fp16: bool = False
    """Mixed precision with float16 (GPU only)."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "gradient_accumulate_steps", "log_step", "save_step", "max_keep"):
            if getattr(self, name) < 1:
                raise UserError(f"runner.{name}: expected at least 1, found {getattr(self, name)}")
        for name, value in (("log_step", self.log_step), ("save_step", self.save_step)):
            if self.n_epochs <= 0 and value >= self.total_steps:
                raise UserError(f"runner.{name}: must be below runner.total_steps {self.total_steps}, found {value}")


_SECTIONS = ("runner", "optimizer", "pretrain_expert")
_OPTIONAL_SECTIONS = ("scheduler",)


def check_config(config: Mapping[str, Any], where: str, complete: bool = True) -> None:
    """Check all but ``pretrain_expert``, which belongs to the recipe.

    Args:
        config: the whole configuration of the runner.
        where: its name, for messages.
        complete: whether ``-o`` has been applied; before that only the sections are looked at.

    Raises:
        UserError: a section or key that is missing or unknown, a value that cannot be.
    """
    for name in _SECTIONS:
        if not isinstance(config.get(name), Mapping):
            raise UserError(f"{where}: has no section {name!r}; is it a configuration for run_pretrain?")
    for name in config:
        if name not in _SECTIONS + _OPTIONAL_SECTIONS:
            raise UserError(f"{where}: unknown section {name!r}; {nearest(name, _SECTIONS + _OPTIONAL_SECTIONS)}")
    if not complete:
        return
    try:
        RunnerConfig.from_mapping(config["runner"], "runner")
        if "datarc" not in config["pretrain_expert"]:
            raise UserError("missing key 'pretrain_expert.datarc'")
        _check_function("optimizer", config["optimizer"], "optimizers")
        if config.get("scheduler"):
            _check_function("scheduler", config["scheduler"], "schedulers")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_function(section: str, settings: Mapping[str, Any], module: str) -> None:
    """s3prl calls ``get_<name>`` of its module ``optimizers`` or ``schedulers``."""
    if "name" not in settings:
        raise UserError(f"missing key '{section}.name'")
    ours = f"get_{section}", "get_grouped_parameters"
    valid = [n.removeprefix("get_") for n in dir(sys.modules[module]) if n.startswith("get_") and n not in ours]
    if settings["name"] not in valid:
        raise UserError(f"{section}.name: unknown value {settings['name']!r}; {nearest(str(settings['name']), valid)}")
