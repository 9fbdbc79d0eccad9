"""What a cache was made with (``cache.json``), and whether that is what a recipe asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.cache.files import command
from s3prl_ekd.config import Aggregation, DistillConfig, TeacherInput
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import write_json

FORMAT = 1
_DEPENDS_ON = ("s3prl", "transformers", "mini", "ckpt", "layers", "layer_norm_targets", "normalize_waveform")


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
    description: dict[str, Any] = {
        "objective.aggregation": str(config.objective.aggregation),
        "teachers": [teacher.name for teacher in config.teachers],
    }
    average = config.objective.aggregation is Aggregation.LAYERWISE_AVERAGE
    for teacher in config.teachers:
        values = teacher.to_mapping()
        for key in (*_DEPENDS_ON, "weight") if average else _DEPENDS_ON:
            description[f"teachers.{teacher.name}.{key}"] = values[key]
    return description


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
        return stored
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run {command(folder)}") from error


def require_same(folder: Path, stored: Mapping[str, Any], config: DistillConfig) -> None:
    """Check that the targets in a folder are those of a recipe.

    Raises:
        UserError: names the settings that differ.
    """
    there, here = stored["made_with"], describe(config)
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
