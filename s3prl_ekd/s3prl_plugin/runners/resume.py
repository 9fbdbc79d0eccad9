"""A pretraining run that goes on: whether it is over, and what was changed on the command line that does not count."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_plugin.runners import override
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

_log = logging.getLogger(__name__)


def is_finished(checkpoint: str, states: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether all steps are done. s3prl would do the last one again, since it saves ``Step`` one short.

    Args:
        checkpoint: the file.
        states: what is in it.
        config: its configuration, ``-o`` applied.
    """
    epochs = config["runner"].get("n_epochs", -1)
    if epochs > 0:  # how many steps that is, only the data say
        return Path(checkpoint).name == f"states-epoch-{epochs}.ckpt"
    return states["Step"] + 1 >= config["runner"]["total_steps"]


def check_recipe(file: str, states: Mapping[str, Any]) -> None:
    """Refuse another recipe than the one that the run began with; s3prl would go on with the latter.

    Raises:
        UserError: it differs (said where).
    """
    if CHECKPOINT_KEY not in states:
        return
    given = DistillConfig.from_yaml(file).to_mapping()
    changed = _differences(given, DistillConfig.from_mapping(states[RECIPE_KEY], RECIPE_KEY).to_mapping())
    if changed:
        raise UserError(
            f"-g {file}: {changed}; a run keeps its recipe: leave -g and -c out to go on, or begin another (-n, -p)"
        )


def warn_of_changes(file: str, changes: str | None, config: Mapping[str, Any]) -> None:
    """Say what in the runner's YAML is not as the run has it: s3prl goes on with the latter.

    Args:
        file: the YAML.
        changes: ``-o``.
        config: the checkpoint's configuration, ``-o`` applied.
    """
    changed = _differences(override.applied(changes, read_yaml(file)), config)
    if changed:
        _log.warning("-c %s: %s; the run goes on as it was: use -o config.KEY=VALUE to change it", file, changed)


def _differences(given: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """``student.hidden_size is 8, the run's is 4, ...``; empty where there is no difference."""
    ours, theirs = dict(_leaves(given)), dict(_leaves(kept))
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} is {ours.get(key)!r}, the run's is {theirs.get(key)!r}" for key in keys)


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{where}[{index}]")
    else:
        yield where, value
