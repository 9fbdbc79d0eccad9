"""Changes to the configuration of a task that a user asks for: one key, or the number of steps."""

from __future__ import annotations

from typing import Any

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.tasks.task import Settings, changed


def set_option(config: Settings, key: str, value: Any) -> Settings:
    """``config`` with one existing dotted key set to a value of its kind.

    Raises:
        UserError: there is no such key, or the value is of another kind.
    """
    place: list[Any] = [config]
    path = key.split(".")
    for depth, part in enumerate(path):
        parent = place[-1]
        if not isinstance(parent, dict) or part not in parent:
            valid = parent if isinstance(parent, dict) else ()
            raise UserError(f"--set {key}: no key {'.'.join(path[: depth + 1])!r}; {nearest(part, valid)}")
        place.append(parent[part])
    old = place[-1]
    if isinstance(old, float) and isinstance(value, int | str):
        try:  # YAML 1.1 reads 1e-3 (no dot) as a string
            value = float(value)
        except ValueError:
            value = str(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--set {key}: expected {type(old).__name__}, found {value!r}")
    return changed(config, {key: value})


def with_steps(config: Settings, steps: int) -> Settings:
    """``config`` with another number of steps; logs, evaluations and checkpoints come at least once."""
    runner = config["runner"]
    every = {f"runner.{name}": min(runner[name], steps) for name in ("log_step", "eval_step", "save_step")}
    return changed(config, {"runner.total_steps": steps, **every})
