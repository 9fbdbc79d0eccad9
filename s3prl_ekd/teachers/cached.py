"""Stand-ins for teachers whose targets are in a cache: what student and heads need to know, and nothing that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

import torch
from torch import Tensor

from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig


class Cache(Protocol):
    """What is known of teachers that are not there, see :class:`s3prl_ekd.target_cache.reading.TargetCache`."""

    widths: Mapping[str, int]

    def start(self, teacher: str, layers: int) -> dict[str, Tensor]:
        """The weights that a student of so many layers starts from."""


class CachedTeacher:
    """A teacher that is not there.

    Attributes:
        name, layers, weight: as in the recipe.
        hidden_size: width D of its hidden states.
    """

    def __init__(self, config: TeacherConfig, cache: Cache, student_layers: int) -> None:
        """``student_layers``: how many of its layers a student that starts from it wants."""
        self.name = config.name
        self.layers = config.layers
        self.weight = config.weight
        self.hidden_size = cache.widths[config.name]
        self._cache = cache
        self._student_layers = student_layers

    def to(self, device: torch.device | str) -> Self:
        """There is nothing to move."""
        return self

    def encoder_state(self) -> dict[str, Tensor]:
        """The weights that the student starts from, as :meth:`s3prl_ekd.teachers.base.Teacher.encoder_state`.

        Raises:
            UserError: the cache keeps those of another teacher, or fewer layers.
        """
        return self._cache.start(self.name, self._student_layers)


def cached_teachers(config: DistillConfig, cache: Cache) -> list[CachedTeacher]:
    """Stand-ins for all of a recipe's teachers, in order."""
    return [CachedTeacher(teacher, cache, config.student.num_hidden_layers) for teacher in config.teachers]
