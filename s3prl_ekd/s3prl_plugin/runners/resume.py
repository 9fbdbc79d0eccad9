"""A pretraining run that goes on: whether it is over, and what was changed on the command line that does not count."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.config.base import Difference, differences, say_differences
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_plugin.runners import override
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

_log = logging.getLogger(__name__)


def is_finished(checkpoint: str, states: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether all steps are done, as its configuration (``-o`` applied) has them.

    s3prl would do the last one again, since it saves ``Step`` one short.
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
    before = DistillConfig.from_saved(states[RECIPE_KEY], "the run's recipe")
    changed = differences(before, DistillConfig.from_yaml(file))
    if changed:
        raise UserError(
            f"-g {file}: {_said(changed)}; a run keeps its recipe: leave -g and -c out to go on, or begin another (-n,"
            " -p)"
        )


def warn_of_changes(file: str, changes: str | None, config: Mapping[str, Any]) -> None:
    """Say what in the runner's YAML, ``-o`` applied, is not as the run has it: s3prl goes on with the latter."""
    changed = differences(config, override.applied(changes, read_yaml(file)))
    if changed:
        _log.warning("-c %s: %s; the run goes on as it was: use -o config.KEY=VALUE to change it", file, _said(changed))


def _said(changed: list[Difference]) -> str:
    return say_differences(changed, "{name} is {now!r}, the run's is {before!r}", ", ")
