"""Stand-ins for teachers whose targets are in a cache: what student and heads need to know, and nothing that runs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig
from s3prl_ekd.network.frames import HiddenStates
from s3prl_ekd.teachers.base import Teacher


class Cache(Protocol):
    """What a cache keeps of the teachers, see :class:`s3prl_ekd.target_cache.reading.TargetCache`."""

    widths: dict[str, int]

    def start(self, teacher: str, layers: int) -> dict[str, Tensor]:
        """The weights that a student of so many layers starts from."""


class CachedTeacher(Teacher):
    """A teacher that does not run, since its targets are in a cache. Its module is empty."""

    def __init__(self, config: TeacherConfig, cache: Cache, student_layers: int) -> None:
        """``student_layers``: how many of its layers a student that starts from it wants."""
        self.name = config.name
        self.layers = config.computed_layers
        self.weight = config.weight
        self.hidden_size = cache.widths[config.name]
        self.num_hidden_layers = None
        self.module = nn.Module()
        self._device = torch.device("cpu")
        self._cache = cache
        self._student_layers = student_layers

    def hidden_states(self, waveforms: Tensor, lengths: Tensor) -> HiddenStates:
        raise RuntimeError(f"teacher {self.name!r} does not run: a batch must have cached targets")

    def encoder_state(self) -> dict[str, Tensor]:
        return self._cache.start(self.name, self._student_layers)


def cached_teachers(config: DistillConfig, cache: Cache) -> list[CachedTeacher]:
    """Stand-ins for all of a recipe's teachers, in order."""
    return [CachedTeacher(teacher, cache, config.student.num_hidden_layers) for teacher in config.teachers]
