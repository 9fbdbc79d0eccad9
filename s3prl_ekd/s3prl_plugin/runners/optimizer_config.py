"""The sections ``optimizer``, ``scheduler`` and ``specaug``, which s3prl hands on as keyword arguments unchecked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from s3prl_ekd.errors import UserError, nearest, one_line
from s3prl_ekd.s3prl_compat import patches

Settings = Mapping[str, Any]
Parameters = dict[str, inspect.Parameter]

# What s3prl fills in by itself.
_SET_BY_S3PRL = {"self", "params", "model_params", "optimizer", "total_steps", "num_training_steps", "kwargs"}
_SET_BY_S3PRL |= {"warmup", "t_total", "adam", "correct_bias"}  # of its Lamb

_FLOAT32_MAX = 3.4e38


def check_training(config: Settings, optimizers: ModuleType, schedulers: ModuleType) -> None:
    """Check ``optimizer`` and ``scheduler`` by their keys, their values and one update of a tiny model.

    Args:
        config: the whole configuration of a runner.
        optimizers: s3prl's module of that name, which runs under two names.
        schedulers: the same.

    Raises:
        UserError: an unknown or missing key, a value that cannot be.
    """
    check_arguments("optimizer", config["optimizer"], _of_optimizer(config["optimizer"], optimizers))
    if config.get("scheduler"):
        function = _named("scheduler", config["scheduler"], schedulers)
        check_arguments("scheduler", config["scheduler"], parameters(function))
    try:
        with patches.quiet():
            _try_one_update(config, optimizers, schedulers)
    except Exception as error:  # whatever torch makes of a value
        raise UserError(f"optimizer or scheduler: {type(error).__name__}: {one_line(error)}") from error


def check_arguments(section: str, settings: Settings, known: Parameters) -> None:
    """Check that a section's keys are among ``known`` and that its numbers are numbers.

    Raises:
        UserError: not so.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"{section}: expected keys and values, found {settings!r}")
    given = {key: value for key, value in settings.items() if key not in ("name", "torch_optim_name")}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"unknown key '{section}.{key}'; {nearest(str(key), known)}")
        _check_value(f"{section}.{key}", value, known[key].default)
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise UserError(f"missing key '{section}.{key}'")


def parameters(function: Callable[..., Any]) -> Parameters:
    """The parameters of ``function`` that a configuration can give."""
    found = inspect.signature(function).parameters
    return {name: parameter for name, parameter in found.items() if name not in _SET_BY_S3PRL}


def _check_value(where: str, value: Any, default: Any) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{where}: expected true or false, found {value!r}")
    elif isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) != len(default):
            raise UserError(f"{where}: expected {len(default)} numbers, found {value!r}")
        for item in value:
            _check_number(where, item)
    elif isinstance(default, int | float) or default is inspect.Parameter.empty:
        _check_number(where, value)


def _check_number(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = " (YAML reads 1.0e-3 as a number, but not 1e-3)" if isinstance(value, str) else ""
        raise UserError(f"{where}: expected a number, found {value!r}{hint}")
    if not math.isfinite(value):
        raise UserError(f"{where}: expected a finite number, found {value}")
    if abs(value) > _FLOAT32_MAX:
        raise UserError(f"{where}: too large for the weights, which are float32: {value}")


def _named(section: str, settings: Settings, module: ModuleType) -> Callable[..., Any]:
    """``get_<name>`` of s3prl's module."""
    if not isinstance(settings, Mapping) or "name" not in settings:
        raise UserError(f"missing key '{section}.name'")
    ours = f"get_{section}", "get_grouped_parameters"
    valid = [n.removeprefix("get_") for n in dir(module) if n.startswith("get_") and n not in ours]
    if settings["name"] not in valid:
        raise UserError(f"{section}.name: unknown value {settings['name']!r}; {nearest(str(settings['name']), valid)}")
    return getattr(module, f"get_{settings['name']}")


def _of_optimizer(settings: Settings, module: ModuleType) -> Parameters:
    known = parameters(_named("optimizer", settings, module))
    if settings["name"] in _HAND_ON:  # the others ignore what they do not name
        known = parameters(_HAND_ON[settings["name"]](settings, module)) | known
    known.pop("torch_optim_name", None)
    return known


def _torch_optimizer(settings: Settings, module: ModuleType) -> type:
    import torch

    valid = [name for name, cls in vars(torch.optim).items() if isinstance(cls, type) and name != "Optimizer"]
    name = settings.get("torch_optim_name")
    if name not in valid:
        raise UserError(f"optimizer.torch_optim_name: unknown value {name!r}; {nearest(str(name), valid)}")
    return getattr(torch.optim, name)


# s3prl's optimizers that hand other keys on -> the class that gets them.
_HAND_ON: dict[str, Callable[[Settings, ModuleType], type]] = {
    "TorchOptim": _torch_optimizer,
    "AdamW_with_schedule": lambda settings, module: module.Lamb,
    "Lamb_with_schedule": lambda settings, module: module.Lamb,
}


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
