"""Checkpoints read as students: this package's own, those of s3prl's distiller, and other projects'."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.heads import HeadPlan, Tap, plan_heads
from s3prl_ekd.student.s3prl_distiller import student_config
from s3prl_ekd.targets import aggregator
from s3prl_ekd.weights.encoders import read_encoder
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY, kind_of
from s3prl_ekd.weights.names import from_distiller
from s3prl_ekd.weights.pickles import load_pickle_safely

logger = logging.getLogger(__name__)

RECIPE_KEY = "Upstream_Config"
"""Where a checkpoint has its recipe, as plain values; s3prl's runner gives it back on resume."""
ARCHITECTURE_KEY = "EKD_Architecture"
"""Where it has its student's sizes, as plain values: the recipe does not say those of a copy or a pruned student."""


class Contents(NamedTuple):
    """A student as it is stored.

    Attributes:
        config: its architecture.
        weights: of the student, under transformers' names.
        heads: of its prediction heads, under ``<number>.<name in the head>``; empty if there are none.
        taps: of its heads; empty if they are not known.
        uses: number of the head of each tap; empty: each has its own.
        kind: of its heads, a name in :data:`~s3prl_ekd.config.recipe.PREDICTION_HEADS`.
    """

    config: StudentConfig
    weights: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    taps: tuple[Tap, ...] = ()
    uses: tuple[int, ...] = ()
    kind: str = "mlp"


def read_checkpoint(path: str | Path) -> Contents:
    """The student and the heads in a checkpoint.

    Raises:
        UserError: see :func:`load_pickle_safely`; or it is a checkpoint of another kind (said which), or of a model
            that a student cannot be.
    """
    states = load_pickle_safely(path)
    try:
        contents = _read(states, Path(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: a damaged checkpoint ({type(error).__name__}: {error})") from error
    if contents is None:
        raise UserError(f"{path}: holds no student, it is {kind_of(states)}")
    return contents


def _read(states: Any, path: Path) -> Contents | None:
    """What is in a checkpoint; None if it is of no kind that can be read."""
    if isinstance(states, Mapping):
        for key, reader in _READERS.items():
            if key in states:
                return reader(states)
    found = read_encoder(states, path)
    if found is None:
        return None
    if found.left_over:
        logger.warning("%s: the student is taken out of it, without %s", path, ", ".join(found.left_over))
    kind = "wavlm" if found.sizes.get("num_buckets") else "hubert"
    config = StudentConfig.from_mapping({"kind": kind, **found.sizes}, "student")
    return Contents(config, {name: tensor.float() for name, tensor in found.weights.items()}, {})


def read_recipe(path: str | Path) -> DistillConfig | None:
    """What a training checkpoint was distilled with, if it says so."""
    states = load_pickle_safely(path)
    return DistillConfig.from_mapping(states[RECIPE_KEY]) if CHECKPOINT_KEY in states else None


def taps_of(recipe: DistillConfig) -> HeadPlan:
    """The taps of a recipe's heads, and their heads. Widths, which it does not know, do not matter to them."""
    teachers = tuple(dataclasses.replace(teacher, principal_components=None) for teacher in recipe.teachers)
    widths = {teacher.name: 1 for teacher in teachers}
    return plan_heads(recipe, aggregator(dataclasses.replace(recipe, teachers=teachers), widths).targets)


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the student and, under ``heads.``, of the heads, apart and in fp32; learnt weights of teachers go."""
    heads = {name.removeprefix("heads."): tensor.float() for name, tensor in state.items() if name.startswith("heads.")}
    student = {
        name.removeprefix("student."): tensor.float()
        for name, tensor in state.items()
        if not name.startswith(("heads.", "learnt_weights."))
    }
    return student, heads


def _read_ours(states: Mapping[str, Any]) -> Contents:
    recipe = DistillConfig.from_mapping(states[RECIPE_KEY])
    if any(name.startswith("distiller.gates.") for name in states.get("state_dict", ())):
        logger.warning("a checkpoint in the middle of pruning: its student is the whole one, without gates")
    # Checkpoints of version 0.1.0 have no such entry, and students of the recipe's sizes.
    student = StudentConfig.from_mapping(states.get(ARCHITECTURE_KEY, recipe.student.to_mapping()), "student")
    return Contents(student, *_split(states[CHECKPOINT_KEY]), *taps_of(recipe), recipe.heads.kind)


def _read_s3prl_distiller(states: Mapping[str, Any]) -> Contents:
    # When s3prl resumes a run it puts the runner's configuration where the distiller's was.
    configs = (states.get(key) or {} for key in ("Config", RECIPE_KEY))
    distiller = next((config["distiller"] for config in configs if "distiller" in config), None)
    if distiller is None:
        raise UserError(
            "a damaged checkpoint of s3prl's distiller: its configuration is not there (s3prl overwrites it when a run"
            " is resumed); take one from before that"
        )
    return Contents(student_config(distiller), *_split(from_distiller(states["Distiller"])))


_READERS: dict[str, Callable[[Mapping[str, Any]], Contents]] = {
    CHECKPOINT_KEY: _read_ours,
    "Distiller": _read_s3prl_distiller,
}
