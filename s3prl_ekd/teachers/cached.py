"""Stand-ins for teachers whose targets are in a cache: what student and heads need to know, and nothing that runs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from s3prl_ekd.config.recipe import DistillConfig, StudentConfig, TeacherConfig
from s3prl_ekd.network.config import Architecture
from s3prl_ekd.network.frames import HiddenStates
from s3prl_ekd.teachers.base import Teacher


class Cache(Protocol):
    """What a cache keeps of the teachers, see :class:`s3prl_ekd.target_cache.reading.TargetCache`."""

    widths: dict[str, int]

    def start(self, student: StudentConfig) -> dict[str, Tensor]:
        """The weights that a student starts from."""

    def architecture(self, student: StudentConfig) -> Architecture:
        """That of the teacher that a student is a copy of."""


class CachedTeacher(Teacher):
    """A teacher that does not run, since its targets are in a cache. Its module is empty."""

    def __init__(self, config: TeacherConfig, cache: Cache, student: StudentConfig) -> None:
        """``student``: what may start from it."""
        self.name = config.name
        self.layers = config.computed_layers
        self.weight = config.weight
        self.hidden_size = cache.widths[config.name]
        self.module = nn.Module()
        self._device = torch.device("cpu")
        self._cache = cache
        self._student = student

    def hidden_states(self, waveforms: Tensor, lengths: Tensor) -> HiddenStates:
        raise RuntimeError(f"teacher {self.name!r} does not run: a batch must have cached targets")

    def encoder_state(self) -> dict[str, Tensor]:
        return self._cache.start(self._student)

    def architecture(self) -> Architecture:
        return self._cache.architecture(self._student)


def cached_teachers(config: DistillConfig, cache: Cache) -> list[CachedTeacher]:
    """Stand-ins for all of a recipe's teachers, in order."""
    return [CachedTeacher(teacher, cache, config.student) for teacher in config.teachers]
