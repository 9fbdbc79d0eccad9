"""The sections ``optimizer`` and ``scheduler``, of which some functions of s3prl ignore what they do not know."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from s3prl_ekd.errors import UserError, nearest, one_line
from s3prl_ekd.s3prl_compat import patches

Settings = Mapping[str, Any]

# What s3prl fills in by itself.
_SET_BY_S3PRL = {"params", "model_params", "total_steps", "kwargs"}
# s3prl's optimizers that hand on what they do not know, so that an unknown key is an error there. The others ignore it.
_HAND_ON = ("TorchOptim", "AdamW_with_schedule", "Lamb_with_schedule")


def check_training(config: Settings, package: str) -> None:
    """Check ``optimizer`` and ``scheduler`` by their keys and by one update of a tiny model.

    Args:
        config: the whole configuration of a runner.
        package: under which s3prl's modules run there: ``s3prl.`` or, for ``run_pretrain.py``, nothing.

    Raises:
        UserError: a key that s3prl would ignore, a key or value that it stumbles over, an update that is not finite.
    """
    optimizer = config.get("optimizer")
    if not isinstance(optimizer, Mapping):
        raise UserError("has no section 'optimizer'")
    optimizers, schedulers = (importlib.import_module(f"{package}{name}") for name in ("optimizers", "schedulers"))
    function = getattr(optimizers, f"get_{optimizer.get('name')}", None)
    if function is not None and optimizer["name"] not in _HAND_ON:
        known = inspect.signature(function).parameters.keys() - _SET_BY_S3PRL | {"name"}
        for key in optimizer:
            if key not in known:
                raise UserError(f"unknown key 'optimizer.{key}'; {nearest(str(key), known)}")
    try:
        with patches.quiet():
            _try_one_update(config, optimizers, schedulers)
    except Exception as error:  # whatever torch makes of a value
        raise UserError(
            f"optimizer or scheduler: {type(error).__name__}: {one_line(error)}{_of_numbers(optimizer)}"
        ) from error


def _of_numbers(settings: Settings) -> str:
    """A hint at a text that was meant to be a number."""
    for key, value in settings.items():
        with contextlib.suppress(ValueError):
            if isinstance(value, str):
                return f" ({key} is the text {value!r}: YAML reads {float(value):.1e} as a number)"
    return ""


def _try_one_update(config: Settings, optimizers: ModuleType, schedulers: ModuleType) -> None:
    import torch

    total_steps = config["runner"].get("total_steps", 1)
    model = torch.nn.Linear(1, 1)
    optimizer = optimizers.get_optimizer([model], total_steps, config["optimizer"])
    scheduler = config.get("scheduler") and schedulers.get_scheduler(optimizer, total_steps, config["scheduler"])
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise ValueError("one update makes the weights infinite")
    if scheduler:
        scheduler.step()
