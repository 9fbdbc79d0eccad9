"""Pruning to a budget, and the stages of a run.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from s3prl_ekd.config.base import Config, Count, OneOf, Range, require
from s3prl_ekd.cost import UNITS

_TAKEN = ("student", "checkpoints", "logs")
"""Folders that a run has beside those of its stages; some disks do not tell upper case from lower."""


class _FolderName:
    def problem(self, value: str) -> str | None:
        """See :class:`s3prl_ekd.config.base.Rule`."""
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value) and value.lower() not in _TAKEN:
            return None
        return f"{value[:60]!r} cannot be a folder of the run; give a short name of letters and digits"


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Config):
    """How large the student may be after pruning, prediction heads excluded; exactly one of the three."""

    parameters: Annotated[float, Range(at_least=1, at_most=1e12)] | None = None
    """Parameters that are left."""
    sparsity: Annotated[float, Range(more_than=0, less_than=1)] | None = None
    """Share of the parameters that goes (DPHuBERT: 0.75)."""
    multiply_adds: Annotated[float, Range(at_least=1, at_most=1e15)] | None = None
    """Multiply-adds for a second of audio that are left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("parameters", "sparsity", "multiply_adds") if getattr(self, name) is not None]
        require(
            len(given) == 1,
            "pruning.budget: give exactly one of parameters, sparsity, multiply_adds"
            f" (found {', '.join(given) or 'none'})",
        )

    @property
    def given(self) -> dict[str, float]:
        """The one that is given, by its name."""
        return {name: value for name, value in self.to_mapping().items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class PruningConfig(Config):
    """Hard-concrete gates (arXiv 1712.01312) on the student's units, driven to a budget by a Lagrangian as in DPHuBERT
    (arXiv 2305.17651, section 2.2). The first stage trains with them; at its end the student shrinks."""

    units: tuple[Annotated[str, OneOf(*UNITS)], ...] = UNITS
    """What has gates: ``conv``, ``heads``, ``intermediate``, ``positions``."""
    budget: BudgetConfig
    """The size to end with."""
    warmup_steps: Count = 5_000
    """Steps in which the size that is asked for falls linearly to the budget, from what the gates expect at first."""
    learning_rate: Annotated[float, Range(more_than=0, at_most=10)] = 0.02
    """Of the gates and of the Lagrangian's multipliers; constant."""
    initial_drop: Annotated[float, Range(at_least=1e-4, at_most=0.9999)] | None = None
    """Where a gate's parameter starts, r: near logit(1 - r). More gates are open than that says: of r = 0.5 a share of
    0.168 is 0. Null: DPHuBERT's, 0.5 for ``intermediate`` and 0.01 for the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.units) > 0, f"pruning.units: name at least one of {', '.join(UNITS)}")
        require(len(set(self.units)) == len(self.units), "pruning.units: a unit is named twice")


@dataclass(frozen=True, kw_only=True)
class StageConfig(Config):
    """A part of a run with its own steps and learning rate; it starts with the student of the one before."""

    name: Annotated[str, _FolderName()]
    """Its folder below the run's ``output``."""
    max_steps: Count
    """Steps of this stage."""
    lr: Annotated[float, Range(at_least=0, at_most=1)] | None = None
    """Learning rate at the end of its warm-up; null: ``optimizer.lr``."""
    warmup: Annotated[float, Range(at_least=0, less_than=1)] | None = None
    """Share of its steps that warm up; null: ``schedule.warmup``."""
