"""What a cache was made with (``cache.json``), and whether that is what a recipe asks for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.config.base import Config
from s3prl_ekd.config.recipe import Aggregation, DistillConfig, ObjectiveConfig, TeacherConfig, TeacherInput
from s3prl_ekd.errors import UserError, one_line
from s3prl_ekd.files import write_json
from s3prl_ekd.target_cache.files import command

FORMAT = 1

# What targets do not depend on; whatever else is or will be a setting of teachers or objective, they do.
_FREE = {
    # the names are listed in their order; weights count where they weigh the average
    TeacherConfig: frozenset({"name", "weight", "own_forward"}),
    ObjectiveConfig: frozenset({"cosine_weight", "loss_on_padding"}),  # on padding: refused
}


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
    if config.objective.loss_on_padding:
        raise UserError(
            "objective.loss_on_padding: what teachers make of padding cannot be cached, since it depends on the other"
            f" utterances of a batch; use false, {instead}"
        )


def describe(config: DistillConfig) -> dict[str, Any]:
    """The settings that targets depend on, as plain values by their names in messages."""
    description = {f"objective.{key}": value for key, value in _depending(config.objective).items()}
    description["teachers"] = [teacher.name for teacher in config.teachers]
    for teacher in config.teachers:
        values = _depending(teacher)
        if config.objective.aggregation is Aggregation.LAYERWISE_AVERAGE:
            values["weight"] = teacher.weight
        description |= {f"teachers.{teacher.name}.{key}": value for key, value in values.items()}
    return description


def _depending(section: Config) -> dict[str, Any]:
    return {key: value for key, value in section.to_mapping().items() if key not in _FREE[type(section)]}


def _default(name: str) -> Any:
    """What a setting was when it could not be set yet; None where it has no default."""
    section = TeacherConfig if name.startswith("teachers.") else ObjectiveConfig
    defaults = {item.name: item.default for item in dataclasses.fields(section)}
    value = defaults[name.rpartition(".")[2]]
    return list(value) if isinstance(value, tuple) else None if value is dataclasses.MISSING else value


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
        if not isinstance(stored["made_with"], dict):
            raise TypeError("made_with is no mapping")
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
    here = describe(config)
    there = {name: _default(name) for name in here if name not in stored["made_with"]} | stored["made_with"]
    changed = [
        f"{name}: {there.get(name)!r} in the cache, {here.get(name)!r} in the recipe"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder}: holds the targets of another recipe ({'; '.join(changed)}); correct the recipe, or make a cache"
            " of its own with `s3prl-ekd cache-targets`"
        )
