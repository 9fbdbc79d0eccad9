"""From several teachers' hidden states to targets (EKD, arXiv 2302.12757, section 3): pure functions on tensors.

A *slot* is the position in the teachers' lists of layers: aggregation pairs layers by position, so with teachers that
predict layers 4, 8, 12 and 8, 16, 24 the first slot holds layer 4 of one and layer 8 of the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_ekd.config.recipe import Aggregation
from s3prl_ekd.errors import UserError


@dataclass(frozen=True)
class Source:
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
    """

    name: str
    size: int
    weight: float
    parts: tuple[tuple[str, int], ...]


class Rule(ABC):
    """One way to aggregate.

    Attributes:
        separable: whether each teacher's part can be taken out of a target again, by :meth:`per_teacher`.
    """

    separable = True

    @abstractmethod
    def plan(self, sources: Sequence[Source]) -> list[Target]:
        """The targets, before any tensor is seen."""

    @abstractmethod
    def combine(self, sources: Sequence[Source], hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """``hidden_states[k][slot]`` (B, F, D_k) to one (B, F, D') per target of :meth:`plan`."""

    @abstractmethod
    def per_teacher(self, sources: Sequence[Source], prediction: Tensor, index: int) -> list[Tensor]:
        """The share of target ``index``'s prediction (..., D') that stands for each of its ``parts``."""


def _slots(sources: Sequence[Source]) -> range:
    return range(len(sources[0].layers))


def _slot_name(kind: str, sources: Sequence[Source], slot: int) -> str:
    layers = dict.fromkeys(str(source.layers[slot]) for source in sources)
    return f"{kind}/{'+'.join(layers)}"


def _parts(sources: Sequence[Source], slot: int) -> tuple[tuple[str, int], ...]:
    return tuple((source.name, source.layers[slot]) for source in sources)


class LayerwiseAverage(Rule):
    """Weighted mean over teachers, slot by slot."""

    separable = False

    def plan(self, sources: Sequence[Source]) -> list[Target]:
        sizes = {source.name: source.hidden_size for source in sources}
        if len(set(sizes.values())) > 1:
            widths = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise UserError(
                f"objective.aggregation: layerwise-average needs teachers of equal width, found {widths};"
                " use layerwise-concatenation or separate-heads"
            )
        slots = _slots(sources)
        return [
            Target(_slot_name("average", sources, s), sources[0].hidden_size, 1 / len(slots), _parts(sources, s))
            for s in slots
        ]

    def combine(self, sources: Sequence[Source], hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        total = sum(source.weight for source in sources)
        combined = []
        for states in zip(*hidden_states, strict=True):
            mean = states[0] * (sources[0].weight / total)
            for source, state in zip(sources[1:], states[1:], strict=True):
                mean = torch.add(mean, state, alpha=source.weight / total)
            combined.append(mean)
        return combined

    def per_teacher(self, sources: Sequence[Source], prediction: Tensor, index: int) -> list[Tensor]:
        return [prediction] * len(sources)


class LayerwiseConcatenation(Rule):
    """Features of all teachers side by side, slot by slot."""

    def plan(self, sources: Sequence[Source]) -> list[Target]:
        slots = _slots(sources)
        size = sum(source.hidden_size for source in sources)
        return [
            Target(_slot_name("concatenation", sources, s), size, 1 / len(slots), _parts(sources, s)) for s in slots
        ]

    def combine(self, sources: Sequence[Source], hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [torch.cat(states, dim=-1) for states in zip(*hidden_states, strict=True)]

    def per_teacher(self, sources: Sequence[Source], prediction: Tensor, index: int) -> list[Tensor]:
        return list(prediction.split([source.hidden_size for source in sources], dim=-1))


class SeparateHeads(Rule):
    """Every (teacher, layer) is a target of its own."""

    def plan(self, sources: Sequence[Source]) -> list[Target]:
        total = sum(source.weight * len(source.layers) for source in sources)
        return [
            Target(f"{source.name}/{layer}", source.hidden_size, source.weight / total, ((source.name, layer),))
            for source in sources
            for layer in source.layers
        ]

    def combine(self, sources: Sequence[Source], hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [state for states in hidden_states for state in states]

    def per_teacher(self, sources: Sequence[Source], prediction: Tensor, index: int) -> list[Tensor]:
        return [prediction]


RULES: dict[Aggregation, Rule] = {
    Aggregation.LAYERWISE_AVERAGE: LayerwiseAverage(),
    Aggregation.LAYERWISE_CONCATENATION: LayerwiseConcatenation(),
    Aggregation.SEPARATE_HEADS: SeparateHeads(),
}
