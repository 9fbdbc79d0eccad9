"""What s3prl's downstream runner and its tasks read from their YAML, as far as a mistake would pass unnoticed.

s3prl ignores a key that it does not know. We know the keys of the packaged configurations: one that is not among them,
but looks like one of them, is a slip of the pen. Any other may be one of the many that s3prl reads and no file shows.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.tasks import BY_DOWNSTREAM

_log = logging.getLogger(__name__)

Settings = Mapping[str, Any]


def check_keys(task: str, config: Settings) -> None:
    """Refuse keys that s3prl would ignore and that are nearly a key of the task's packaged configurations.

    Args:
        task: as ``-d`` names it; only :data:`~s3prl_ekd.tasks.BY_DOWNSTREAM` are known.
        config: a configuration, or the part of one that ``-o`` sets.

    Raises:
        UserError: such a key, or a limit of the gradient that lets nothing be learnt.
    """
    limit = (config.get("runner") or {}).get("gradient_clipping", 1)
    if not isinstance(limit, int | float) or not limit > 0:
        raise UserError(f"runner.gradient_clipping: expected a positive number, found {limit!r}")
    if task in BY_DOWNSTREAM:
        templates = [BY_DOWNSTREAM[task].template(recipes) for recipes in ("mini", "real")]
        _check(config, templates, lists_of(task, config), "")


def _check(config: Settings, templates: Sequence[Settings], names: list[str], where: str) -> None:
    known = {key for template in templates for key in template}
    for key, value in config.items():
        if key in known:
            if isinstance(value, Mapping):
                sections = [template[key] for template in templates if isinstance(template.get(key), Mapping)]
                _check(value, sections, names, f"{where}{key}.")
        elif key not in names and difflib.get_close_matches(str(key), known, n=1, cutoff=0.8):
            raise UserError(f"unknown key '{where}{key}'; {nearest(str(key), known)}")


def check_filled_in(task: str, config: Settings) -> None:
    """Refuse a packaged configuration in which the paths are still ``null``.

    Raises:
        UserError: it is one.
    """
    empty = list(_empty(BY_DOWNSTREAM[task].template("real"), config, "")) if task in BY_DOWNSTREAM else []
    if empty:
        raise UserError(
            f"{', '.join(empty)}: null; fill in the path{'s' if len(empty) > 1 else ''} (in the file, or by -o), or use"
            " s3prl-ekd superb, which does"
        )


def _empty(template: Settings, config: Settings, where: str) -> Iterator[str]:
    for key in (key for key in template if key in config):
        if isinstance(template[key], Mapping) and isinstance(config[key], Mapping):
            yield from _empty(template[key], config[key], f"{where}{key}.")
        elif template[key] is None and config[key] is None and key != "test_fold":
            yield f"{where}{key}"


def lists_of(task: str, config: Settings) -> list[str]:
    """The lists of data in a configuration, which ``-t`` can name; none for a task whose splits have fixed names."""
    section = BY_DOWNSTREAM[task].lists if task in BY_DOWNSTREAM else ""
    expert = config.get("downstream_expert")
    data = expert.get(section) if isinstance(expert, Mapping) else None
    lists = data.items() if isinstance(data, Mapping) else ()
    return [name for name, value in lists if isinstance(value, list) and name != "lexicon"]


def default_split(task: str, config: Settings) -> str:
    """What ``-t`` is where it is not given.

    Raises:
        UserError: there is no split for testing.
    """
    valid = lists_of(task, config)
    if "test" in valid or task not in BY_DOWNSTREAM or not BY_DOWNSTREAM[task].lists:
        return "test"  # s3prl's own default
    tests = [name for name in valid if name.startswith("test")]
    if not tests:
        raise UserError(f"-t is missing: name what to evaluate; valid: {', '.join(valid)}")
    _log.info("evaluating %s; -t chooses another of %s", tests[0], ", ".join(valid))
    return tests[0]
