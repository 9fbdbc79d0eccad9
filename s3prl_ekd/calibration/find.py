"""All that a recipe asks for, found by running its teachers on some utterances."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from s3prl_ekd.calibration import fits, groups, speech
from s3prl_ekd.calibration.groups import FoundGroups
from s3prl_ekd.calibration.result import Calibration
from s3prl_ekd.calibration.similarity import SIMILARITIES
from s3prl_ekd.config.recipe import LayerClusters, TeacherConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.devices import default_device
from s3prl_ekd.targets import ComponentFit, Fits, UnitFit, slot_states
from s3prl_ekd.teachers import Teacher, load_teacher

logger = logging.getLogger(__name__)

COMPONENT_UTTERANCES = 64
"""Utterances that principal components are found on."""


def find(config: RunConfig, device: str | None = None) -> Calibration:
    """Find it for all teachers.

    Args:
        config: the recipe.
        device: where the teachers run; None: as the recipe's ``trainer.accelerator``.

    Raises:
        UserError: a teacher cannot be loaded, or has fewer layers, features or frames than what is asked for needs;
            the data cannot be read.
    """
    found: list[FoundGroups] = []
    units: dict[str, UnitFit] = {}
    components: dict[str, tuple[ComponentFit, ...]] = {}
    for entry in (entry for entry in config.teachers if entry.needs_calibration):
        teacher = _load(entry).to(device or default_device(config.trainer.accelerator))
        asked = groups.asked_of(entry)
        if asked is not None:
            found.append(_groups(config, entry, asked, teacher))
            entry = replace(entry, layers=found[-1].groups)
        if entry.units is not None:
            rows = [
                one[entry.units.layer]
                for one in speech.hidden_states(config, teacher, entry.units.utterances, "units of")
            ]
            units[entry.name] = fits.units(torch.cat(rows), entry.units, config.seed, entry.name)
        if entry.principal_components is not None:
            components[entry.name] = _components(config, entry, entry.principal_components, teacher)
    return Calibration(config.teachers, speech.identity(config), tuple(found), Fits(units, components))


def _load(entry: TeacherConfig) -> Teacher:
    """A teacher with all hidden states that are needed."""
    asked = groups.asked_of(entry)
    if asked is None:
        return load_teacher(entry)
    # Only a loaded model says how many layers it has, and by then it has let go of those it was not asked for.
    depth = load_teacher(replace(entry, layers=(0,), units=None)).num_hidden_layers
    assert depth is not None, "it is not cached"
    groups.require_enough(entry.name, asked, depth + 1)
    return load_teacher(replace(entry, layers=tuple(range(depth + 1))))


def _groups(config: RunConfig, entry: TeacherConfig, asked: LayerClusters, teacher: Teacher) -> FoundGroups:
    alone = replace(entry, layers=teacher.layers)  # each hidden state, normalised as its target will be
    similarity = SIMILARITIES[asked.similarity]()
    for states in speech.hidden_states(config, teacher, asked.utterances, "comparing layers of"):
        similarity.add(slot_states(alone, states))
    matrix = similarity.matrix()
    groups.require_comparable(entry.name, matrix)
    found = groups.group(matrix, asked)
    logger.info("teacher %s: layers %s, found on %d frames", entry.name, groups.line(found), similarity.frames)
    return FoundGroups(entry.name, asked, found, matrix)


def _components(config: RunConfig, entry: TeacherConfig, count: int, teacher: Teacher) -> tuple[ComponentFit, ...]:
    """Of each slot."""
    moments = [fits.Moments(teacher.hidden_size) for _ in entry.slots]
    for states in speech.hidden_states(config, teacher, COMPONENT_UTTERANCES, "principal components of"):
        for one, rows in zip(moments, slot_states(entry, states), strict=True):
            one.add(rows)
    return tuple(fits.principal_components(one, count, entry.name) for one in moments)
