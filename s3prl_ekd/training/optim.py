"""AdamW's parameter groups, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from s3prl_ekd.config.training import Decay, ScheduleConfig
from s3prl_ekd.targets import LearntWeights


def parameter_groups(
    module: nn.Module, weight_decay: float, *, leave_out: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Two groups: what is decayed, and what is not: biases, norms, magnitudes of weight norm, weights
    of teachers.

    ``leave_out`` is a part of the module with groups of its own.
    """
    others = set() if leave_out is None else set(leave_out.modules())
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for part in (part for part in module.modules() if part not in others):
        for name, parameter in part.named_parameters(recurse=False):
            magnitude = isinstance(part, ParametrizationList) and name == "original0"
            is_free = name == "bias" or isinstance(part, nn.LayerNorm | nn.GroupNorm | LearntWeights) or magnitude
            (free if is_free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


_FALL: dict[Decay, Callable[[float, float], float]] = {
    Decay.LINEAR: lambda done, final: final + (1 - final) * (1 - done),
    Decay.COSINE: lambda done, final: final + (1 - final) * (1 + math.cos(math.pi * done)) / 2,
    Decay.CONSTANT: lambda done, final: 1.0,
}


def learning_rate_factor(step: int, max_steps: int, config: ScheduleConfig) -> float:
    """What ``optimizer.lr`` is multiplied by at a step, counted from 0, of a run of ``max_steps``."""
    warmup = round(config.warmup * max_steps)
    if step < warmup:
        return (step + 1) / warmup
    return _FALL[config.decay](min(1.0, (step - warmup) / max(1, max_steps - warmup)), config.final)
