"""What a cache was made with (``cache.json``), and whether its targets are those of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.audio.distortions import TeacherInput
from s3prl_ekd.config.base import Config, differences, say_differences, set_value
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import write_json
from s3prl_ekd.target_cache.files import command

FORMAT = 1

FREE = frozenset(
    {
        "objective.cosine_weight",
        "objective.learnt_weights",  # of averages they are refused
        "objective.losses",
        "objective.loss_on_padding",  # True is refused
        "teachers.name",
        "teachers.own_forward",
        "teachers.units.weight",
        "teachers.weight",
    }
)
"""The settings of teachers and objective that targets do not depend on; on all others, new ones included, they do.
The teachers' names are described as a list, and their weights where they weigh an average."""


def check_cacheable(config: DistillConfig) -> None:
    """That the targets of a recipe are the same in every epoch and every batch.

    Raises:
        UserError: they are not.
    """
    instead = "or let the teachers run in training (targets.cache: null)"
    if config.distortion.teacher_input is TeacherInput.DISTORTED:
        raise UserError(
            "distortion.teacher_input: the targets of distorted speech cannot be cached, since it is distorted"
            f" otherwise in every epoch; use clean, {instead}"
        )
    if config.objective.learnt_weights is not None and config.objective.aggregation != "separate-heads":
        raise UserError(
            f"objective.learnt_weights: a cached {config.objective.aggregation} is of fixed weights; use"
            f" separate-heads, {instead}"
        )
    if config.objective.loss_on_padding:
        raise UserError(
            "objective.loss_on_padding: what teachers make of padding cannot be cached, since it depends on the other"
            f" utterances of a batch; use false, {instead}"
        )


def describe(config: DistillConfig) -> dict[str, Any]:
    """The settings that targets depend on, as plain values by their names in messages."""
    description = {f"objective.{key}": value for key, value in _depending("objective", config.objective).items()}
    description["teachers"] = [teacher.name for teacher in config.teachers]
    for teacher in config.teachers:
        values = _depending("teachers", teacher)
        # The targets of these two do not depend on the teachers' weights.
        if config.objective.aggregation not in ("layerwise-concatenation", "separate-heads"):
            values["weight"] = teacher.weight
        description |= {f"teachers.{teacher.name}.{key}": value for key, value in values.items()}
    return description


def _depending(section: str, config: Config) -> dict[str, Any]:
    return _without_free(section, config.to_mapping())


def _without_free(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if f"{section}.{key}" not in FREE}
    return {
        key: _without_free(f"{section}.{key}", value) if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


def _in_this_version(description: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What :func:`describe` gives now for the recipe that it gave ``description`` for, perhaps in an older version.

    Raises:
        UserError: a setting that this version does not know.
    """
    teachers = {f"teachers.{name}": {"name": name} for name in description["teachers"]}
    recipe: dict[str, Any] = {"teachers": list(teachers.values())}
    for name, value in description.items():
        section, _, key = name.rpartition(".")
        if section in teachers:
            teachers[section][key] = value
        elif name != "teachers":
            set_value(recipe, name, value)
    if any(teacher.get("units") for teacher in teachers.values()):
        # Such a recipe has terms for units, which count for nothing here, and is refused without.
        set_value(recipe, "objective.losses", [{"kind": "l1"}, {"kind": "kl"}])
    return describe(DistillConfig.from_saved(recipe, where))


def write_description(folder: Path, config: DistillConfig, widths: Mapping[str, int]) -> None:
    """Write ``cache.json``."""
    write_json(folder / "cache.json", {"format": FORMAT, "widths": dict(widths), "made_with": describe(config)})


def read_description(folder: Path) -> dict[str, Any] | None:
    """What :func:`write_description` wrote; None where there is nothing.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / "cache.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise UserError(f"{folder}: of format {stored['format']}, this version reads {FORMAT}; make it anew")
        if not isinstance(stored["made_with"]["teachers"], list):
            raise TypeError("made_with has no list of teachers")
        if not all(type(width) is int and width > 0 for width in stored["widths"].values()):
            raise ValueError("the widths are no positive numbers")
        return stored
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); delete it and run {command(folder)}") from error


def require_same(folder: Path, stored: Mapping[str, Any], config: DistillConfig) -> None:
    """Check that the targets in a folder are those of a recipe.

    Raises:
        UserError: names the settings that differ.
    """
    there = _in_this_version(stored["made_with"], f"{folder / 'cache.json'}")
    changed = differences(there, describe(config))
    if changed:
        said = say_differences(changed, "{name}: {before!r} in the cache, {now!r} in the recipe")
        raise UserError(
            f"{folder}: holds the targets of another recipe ({said}); correct the recipe, or make a cache of its own"
            " with `s3prl-ekd cache-targets`"
        )
