"""From several teachers' hidden states to targets (EKD, arXiv 2302.12757, section 3): pure functions on tensors.

A *slot* is the position in the teachers' lists of layers: aggregation pairs layers by position, so with teachers that
predict layers 4, 8, 12 and 8, 16, 24 the first slot holds layer 4 of one and layer 8 of the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_ekd.config.recipe import AGGREGATORS, DistillConfig, ObjectiveConfig
from s3prl_ekd.errors import UserError


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher as far as aggregation cares: what it gives and how much it counts."""

    name: str
    layers: tuple[int, ...]
    hidden_size: int
    weight: float = 1.0


@dataclass(frozen=True)
class Target:
    """What one prediction head must predict.

    Attributes:
        name: ``hubert/4``, ``average/4`` or ``concatenation/4``, for logs.
        size: width D'.
        weight: share of the loss; the weights of all targets add up to 1.
        parts: the ``(teacher, layer)`` pairs in it, in order.
        student_layer: the student's hidden state that it is predicted from; -1: the last.
    """

    name: str
    size: int
    weight: float
    parts: tuple[tuple[str, int], ...]
    student_layer: int = -1


class Aggregator(ABC):
    """One way to make targets of several teachers' hidden states.

    Attributes:
        separable: whether a target holds the hidden states of each of its teachers, so that :meth:`per_teacher` gives
            them back.
        teachers: in the recipe's order.
        objective: the recipe's objective, for settings of its own.
        targets: one for each prediction head.
    """

    separable = True

    def __init__(self, teachers: Sequence[TeacherSpec], objective: ObjectiveConfig) -> None:
        self.teachers = tuple(teachers)
        self.objective = objective
        self.targets = self._plan()

    @abstractmethod
    def _plan(self) -> list[Target]:
        """The targets, before any tensor is seen."""

    @abstractmethod
    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """``hidden_states[k][slot]`` (N, D_k) of teacher k to one (N, D') per target."""

    @abstractmethod
    def per_teacher(self, index: int, prediction: Tensor) -> list[Tensor]:
        """The share of target ``index``'s prediction (N, D') that stands for each of its ``parts``."""


class _Layerwise(Aggregator):
    """One target for each slot, of all teachers together."""

    kind: str

    def _plan(self) -> list[Target]:
        targets = []
        for layers in zip(*(teacher.layers for teacher in self.teachers), strict=True):
            name = f"{self.kind}/{'+'.join(dict.fromkeys(map(str, layers)))}"
            parts = tuple(zip((teacher.name for teacher in self.teachers), layers, strict=True))
            targets.append(Target(name, self._size(), 1 / len(self.teachers[0].layers), parts))
        return targets

    @abstractmethod
    def _size(self) -> int:
        """Width of each target."""


class LayerwiseAverage(_Layerwise):
    """Weighted mean over teachers, slot by slot."""

    kind = "average"
    separable = False

    def _size(self) -> int:
        sizes = {teacher.name: teacher.hidden_size for teacher in self.teachers}
        if len(set(sizes.values())) > 1:
            widths = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise UserError(
                f"objective.aggregation: {self.objective.aggregation} needs teachers of equal width, found {widths};"
                " use layerwise-concatenation or separate-heads"
            )
        return self.teachers[0].hidden_size

    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        total = sum(teacher.weight for teacher in self.teachers)
        combined = []
        for states in zip(*hidden_states, strict=True):
            mean = states[0] * (self.teachers[0].weight / total)
            for teacher, state in zip(self.teachers[1:], states[1:], strict=True):
                mean = torch.add(mean, state, alpha=teacher.weight / total)
            combined.append(mean)
        return combined

    def per_teacher(self, index: int, prediction: Tensor) -> list[Tensor]:
        return [prediction] * len(self.teachers)


class LayerwiseConcatenation(_Layerwise):
    """Features of all teachers side by side, slot by slot."""

    kind = "concatenation"

    def _size(self) -> int:
        return sum(teacher.hidden_size for teacher in self.teachers)

    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [torch.cat(states, dim=-1) for states in zip(*hidden_states, strict=True)]

    def per_teacher(self, index: int, prediction: Tensor) -> list[Tensor]:
        return list(prediction.split([teacher.hidden_size for teacher in self.teachers], dim=-1))


class SeparateHeads(Aggregator):
    """Every (teacher, layer) is a target of its own."""

    def _plan(self) -> list[Target]:
        total = sum(teacher.weight * len(teacher.layers) for teacher in self.teachers)
        return [
            Target(f"{teacher.name}/{layer}", teacher.hidden_size, teacher.weight / total, ((teacher.name, layer),))
            for teacher in self.teachers
            for layer in teacher.layers
        ]

    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [state for states in hidden_states for state in states]

    def per_teacher(self, index: int, prediction: Tensor) -> list[Tensor]:
        return [prediction]


def aggregator(config: DistillConfig, widths: Mapping[str, int]) -> Aggregator:
    """A recipe's aggregation of its teachers.

    Args:
        config: the recipe.
        widths: of each teacher's hidden states, by its name.

    Raises:
        UserError: the teachers do not fit together.
    """
    kind: type[Aggregator] = AGGREGATORS.load(config.objective.aggregation)
    teachers = [TeacherSpec(one.name, one.layers, widths[one.name], one.weight) for one in config.teachers]
    return kind(teachers, config.objective)
