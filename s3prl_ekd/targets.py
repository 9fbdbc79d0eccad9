"""From several teachers' hidden states to targets (EKD, arXiv 2302.12757, section 3), on tensors alone.

A *slot* is the position in the teachers' lists of layers; it holds a layer, or the mean of a group of layers.
Aggregation pairs layers by position, so with teachers that predict layers 4, 8, 12 and 8, 16, 24 the first slot holds
layer 4 of one and layer 8 of the other.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ekd.config.recipe import (
    AGGREGATORS,
    DistillConfig,
    LearntWeightsConfig,
    ObjectiveConfig,
    Slot,
    TeacherConfig,
    UnitsConfig,
    slot_name,
)
from s3prl_ekd.errors import UserError

Part = tuple[str, str]
"""(teacher, slot's name): one of a teacher's slots."""

# ---- what one teacher gives


@dataclass(frozen=True)
class UnitFit:
    """Units of a teacher as they were found.

    Attributes:
        centres: (K, D) of the clusters.
        scale: the mean squared distance over frames and centres.
    """

    centres: Tensor
    scale: float

    def logits(self, rows: Tensor, temperature: float) -> Tensor:
        """Of hidden states (N, D) minus their squared distances to the centres, (N, K); see :class:`UnitsConfig`."""
        with torch.autocast(rows.device.type, enabled=False):
            centres = self.centres.to(rows)
            products = torch.addmm(centres.square().sum(-1), rows, centres.T, alpha=-2)  # |c|^2 - 2 x c
            distances = products + rows.square().sum(-1, keepdim=True)
            return -distances / (self.scale * temperature)


@dataclass(frozen=True)
class ComponentFit:
    """Principal components of a slot as they were found.

    Attributes:
        mean: (D,).
        components: (D, P), orthonormal columns.
    """

    mean: Tensor
    components: Tensor

    def project(self, rows: Tensor) -> Tensor:
        """Hidden states (N, D) to (N, P)."""
        with torch.autocast(rows.device.type, enabled=False):
            return (rows - self.mean.to(rows)) @ self.components.to(rows)


@dataclass(frozen=True)
class Fits:
    """What was found on the run's own data before it began, by the teachers' names.

    Attributes:
        units: of teachers with units.
        components: of teachers with principal components, for each slot.
    """

    units: Mapping[str, UnitFit] = field(default_factory=dict)
    components: Mapping[str, tuple[ComponentFit, ...]] = field(default_factory=dict)

    def state(self) -> dict[str, Tensor]:
        """As tensors with flat names: ``units.NAME.centres``, ``components.NAME.SLOT.mean`` ..."""
        state = {}
        for name, unit in self.units.items():
            state[f"units.{name}.centres"] = unit.centres
            state[f"units.{name}.scale"] = torch.tensor(float(unit.scale), dtype=torch.float64)
        for name, slots in self.components.items():
            for slot, fit in enumerate(slots):
                state[f"components.{name}.{slot}.mean"] = fit.mean
                state[f"components.{name}.{slot}.components"] = fit.components
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Fits:
        """What :meth:`state` gave."""
        names = [name.removesuffix(".centres").removeprefix("units.") for name in state if name.endswith(".centres")]
        units = {
            name: UnitFit(state[f"units.{name}.centres"], float(state[f"units.{name}.scale"]))
            for name in names
        }  # fmt: skip
        components: dict[str, dict[int, ComponentFit]] = {}
        for key in (name for name in state if name.endswith(".components")):
            prefix = key.removesuffix(".components")
            name, _, slot = prefix.removeprefix("components.").rpartition(".")
            components.setdefault(name, {})[int(slot)] = ComponentFit(state[f"{prefix}.mean"], state[key])
        # By number: files have their tensors in the order of names, slot 10 before slot 2.
        return cls(units, {name: tuple(slots[i] for i in sorted(slots)) for name, slots in components.items()})

    def to(self, device: torch.device) -> Fits:
        """The same on a device; itself where it is there already."""
        found = [one.centres for one in self.units.values()]
        found += [one.mean for slots in self.components.values() for one in slots]
        if all(tensor.device == device for tensor in found):
            return self
        # The scales stay numbers: reading one back from a device would wait for it, and not all have float64.
        units = {name: dataclasses.replace(one, centres=one.centres.to(device)) for name, one in self.units.items()}
        components = {
            name: tuple(ComponentFit(one.mean.to(device), one.components.to(device)) for one in slots)
            for name, slots in self.components.items()
        }
        return Fits(units, components)


def slot_states(settings: TeacherConfig, layers: Mapping[int, Tensor]) -> list[Tensor]:
    """A teacher's hidden states (N, D) by layer to one (N, D) for each slot.

    With ``layer_norm_targets`` each layer is normalised, then the layers of a group are averaged.
    """
    if settings.layer_norm_targets:
        layers = {layer: F.layer_norm(rows, rows.shape[-1:]) for layer, rows in layers.items()}
    slots = []
    for slot in settings.slots:
        first, *others = (slot,) if isinstance(slot, int) else slot
        total = layers[first]
        for layer in others:
            total = total + layers[layer]
        slots.append(total / (len(others) + 1) if others else total)
    return slots


def teacher_targets(settings: TeacherConfig, layers: Mapping[int, Tensor], fits: Fits) -> list[Tensor]:
    """What is to be predicted of one teacher: (N, D) for each slot, then (N, K) logits of its units if it has any.

    Args:
        layers: its hidden states (N, D), for each of ``settings.computed_layers``.

    Raises:
        UserError: its units or components have not been found.
    """
    found = slot_states(settings, layers)
    if settings.principal_components is not None:
        _require_found(settings.name in fits.components, settings.name, "principal components")
        pairs = zip(found, fits.components[settings.name], strict=True)
        found = [fit.project(rows) for rows, fit in pairs]
    if settings.units is not None:
        _require_found(settings.name in fits.units, settings.name, "units")
        logits = fits.units[settings.name].logits(layers[settings.units.layer], settings.units.temperature)
        found.append(logits)
    return found


def _require_found(found: bool, name: str, what: str) -> None:
    if not found:
        raise UserError(f"teacher {name!r}: its {what} have not been found yet; s3prl-ekd distill finds them")


# ---- what all teachers give together


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher as far as aggregation cares: what it gives and how much it counts.

    Attributes:
        size: width of its slots.
    """

    name: str
    slots: tuple[Slot, ...]
    size: int
    weight: float = 1.0
    units: UnitsConfig | None = None

    @property
    def slot_names(self) -> list[str]:
        return [slot_name(slot) for slot in self.slots]


@dataclass(frozen=True)
class Target:
    """What one prediction head must predict.

    Attributes:
        name: ``hubert/4``, ``hubert/1-4``, ``average/4``, ``hubert/units`` ..., for logs.
        size: width D'.
        weight: share of the loss; the weights of all targets add up to 1.
        parts: the teachers' slots in it, in order.
        student_layer: the student's hidden state that it is predicted from where the recipe's ``heads.from`` does not
            say: 0 is the input of the first layer; -1: the last.
        slot: its number, from 0 on; None: it belongs to no slot.
        kind: ``states``, or ``units``: logits, which have loss terms of their own.
    """

    name: str
    size: int
    weight: float
    parts: tuple[Part, ...]
    student_layer: int = -1
    slot: int | None = None
    kind: str = "states"

    @property
    def source(self) -> str:
        """What the name says before the slot: a teacher, or how several were aggregated."""
        return self.name.rpartition("/")[0]


class LearntWeights(nn.Module):
    """Weights of the teachers, trained with the student: for each slot a softmax over teachers, with a floor.

    Ours; EKD weighs all teachers alike.
    """

    def __init__(self, slots: int, teachers: int, settings: LearntWeightsConfig) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(slots, teachers))
        self.floor = settings.floor

    def forward(self) -> Tensor:
        """(slots, K), each row adding up to 1; all equal at the start."""
        left = 1 - self.floor * self.logits.shape[1]
        return self.floor + left * self.logits.float().softmax(dim=-1)


class Aggregator(ABC):
    """One way to make targets of several teachers' hidden states.

    Attributes:
        separable: whether the targets hold the hidden states of each teacher, so that :meth:`per_teacher` gives them
            back.
        teachers: in the recipe's order.
        objective: the recipe's objective, for settings of its own.
        learnt: the teachers' weights where they are trained; None: the recipe's.
        targets: one for each prediction: of hidden states, then of units.
    """

    separable = True

    def __init__(self, teachers: Sequence[TeacherSpec], objective: ObjectiveConfig) -> None:
        self.teachers = tuple(teachers)
        self.objective = objective
        settings = objective.learnt_weights
        self.learnt = LearntWeights(len(teachers[0].slots), len(teachers), settings) if settings else None
        states, units = self._plan(), self._plan_units()
        self._states = len(states)
        total = 1 + sum(target.weight for target in units)
        self.targets = [dataclasses.replace(target, weight=target.weight / total) for target in (*states, *units)]

    @abstractmethod
    def _plan(self) -> list[Target]:
        """The targets of hidden states, before any tensor is seen; their weights add up to 1."""

    @abstractmethod
    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """``hidden_states[k][slot]`` (N, D_k) of teacher k to one (N, D') for each target of hidden states."""

    @abstractmethod
    def per_teacher(self, values: Sequence[Tensor]) -> dict[Part, Tensor]:
        """What values (N, D') of all targets of hidden states, or predictions of them, say of each teacher's slots."""

    def _plan_units(self) -> list[Target]:
        """A teacher's units count as one of its slots times ``units.weight``, beside hidden states that count 1."""
        total = sum(teacher.weight * len(teacher.slots) for teacher in self.teachers)
        return [
            Target(
                f"{one.name}/units",
                one.units.count,
                one.units.weight * one.weight / total,
                ((one.name, "units"),),
                kind="units",
            )
            for one in self.teachers
            if one.units is not None
        ]

    def __call__(self, given: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """What :func:`teacher_targets` gave for each teacher to one (N, D') for each target."""
        pairs = list(zip(self.teachers, given, strict=True))
        states = [rows[: len(teacher.slots)] for teacher, rows in pairs]
        units = [rows[-1] for teacher, rows in pairs if teacher.units is not None]
        return [*self.combine(states), *units]

    def states_of(self, values: Sequence[Tensor]) -> dict[Part, Tensor]:
        """:meth:`per_teacher` of the values of all targets, units included."""
        return self.per_teacher(values[: self._states])

    def weights(self) -> list[float | Tensor]:
        """Share of each target in the loss: :attr:`Target.weight`, or what has been learnt so far."""
        return [target.weight for target in self.targets]

    def learnt_metrics(self) -> dict[str, Tensor]:
        """The learnt weights, by their names in the log: ``weight/TEACHER/SLOT``."""
        if self.learnt is None:
            return {}
        shares = self.learnt().detach()
        return {
            f"weight/{teacher.name}/{name}": shares[slot, k]
            for k, teacher in enumerate(self.teachers)
            for slot, name in enumerate(teacher.slot_names)
        }


class _Layerwise(Aggregator):
    """One target for each slot, of all teachers together."""

    kind: str

    def _plan(self) -> list[Target]:
        targets = []
        for slot, names in enumerate(zip(*(teacher.slot_names for teacher in self.teachers), strict=True)):
            name = f"{self.kind}/{'+'.join(dict.fromkeys(names))}"
            parts = tuple(zip((teacher.name for teacher in self.teachers), names, strict=True))
            targets.append(Target(name, self._size(), 1 / len(self.teachers[0].slots), parts, slot=slot))
        return targets

    @abstractmethod
    def _size(self) -> int:
        """Width of each target."""


class LayerwiseAverage(_Layerwise):
    """Weighted mean over teachers, slot by slot."""

    kind = "average"
    separable = False

    def _size(self) -> int:
        sizes = {teacher.name: teacher.size for teacher in self.teachers}
        if len(set(sizes.values())) > 1:
            widths = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise UserError(
                f"objective.aggregation: {self.objective.aggregation} needs teachers of equal width, found {widths};"
                " use layerwise-concatenation or separate-heads"
            )
        return self.teachers[0].size

    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        if self.learnt is not None:
            pairs = zip(self.learnt(), zip(*hidden_states, strict=True), strict=True)
            return [torch.stack([w * state for w, state in zip(*pair, strict=True)]).sum(0) for pair in pairs]
        total = sum(teacher.weight for teacher in self.teachers)
        combined = []
        for states in zip(*hidden_states, strict=True):
            mean = states[0] * (self.teachers[0].weight / total)
            for teacher, state in zip(self.teachers[1:], states[1:], strict=True):
                mean = torch.add(mean, state, alpha=teacher.weight / total)
            combined.append(mean)
        return combined

    def per_teacher(self, values: Sequence[Tensor]) -> dict[Part, Tensor]:
        pairs = zip(self.targets, values, strict=False)
        return {part: value for target, value in pairs for part in target.parts}


class LayerwiseConcatenation(_Layerwise):
    """Features of all teachers side by side, slot by slot."""

    kind = "concatenation"

    def _size(self) -> int:
        return sum(teacher.size for teacher in self.teachers)

    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [torch.cat(states, dim=-1) for states in zip(*hidden_states, strict=True)]

    def per_teacher(self, values: Sequence[Tensor]) -> dict[Part, Tensor]:
        parts: dict[Part, Tensor] = {}
        for target, value in zip(self.targets, values, strict=False):
            parts |= zip(target.parts, value.split([teacher.size for teacher in self.teachers], dim=-1), strict=True)
        return parts


class SeparateHeads(Aggregator):
    """Every slot of every teacher is a target of its own."""

    def _plan(self) -> list[Target]:
        total = sum(teacher.weight * len(teacher.slots) for teacher in self.teachers)
        return [
            Target(f"{teacher.name}/{name}", teacher.size, teacher.weight / total, ((teacher.name, name),), slot=slot)
            for teacher in self.teachers
            for slot, name in enumerate(teacher.slot_names)
        ]

    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [state for states in hidden_states for state in states]

    def per_teacher(self, values: Sequence[Tensor]) -> dict[Part, Tensor]:
        return {target.parts[0]: value for target, value in zip(self.targets, values, strict=False)}

    def weights(self) -> list[float | Tensor]:
        given = super().weights()
        if self.learnt is None:
            return given
        # Teachers' weights are equal in the recipe, so that a slot's add up to as much as before.
        shares = self.learnt().T.flatten() * len(self.teachers)  # in the targets' order
        return [weight * share for weight, share in zip(given, shares, strict=False)] + given[self._states :]


class TeacherDifferences(LayerwiseAverage):
    """The weighted mean over teachers, and the difference of each teacher from it, slot by slot (residual EKD).

    Its idea is to predict what teachers do not share beside what they share; the equations could not be read, these are
    ours. Differences are taken from the mean and not from the first teacher, so that no order of the teachers counts;
    what a prediction says of a teacher is the sum of two. The means count one half, the differences the other, each by
    its teacher's weight. Of a single teacher there is the mean alone.
    """

    separable = True

    def _plan(self) -> list[Target]:
        means = super()._plan()
        if len(self.teachers) == 1:
            return means
        total = sum(teacher.weight for teacher in self.teachers)
        return [dataclasses.replace(mean, weight=mean.weight / 2) for mean in means] + [
            dataclasses.replace(
                mean,
                name=f"{teacher.name}-average/{part[1]}",
                weight=mean.weight / 2 * teacher.weight / total,
                parts=(part,),
            )
            for mean in means
            for teacher, part in zip(self.teachers, mean.parts, strict=True)
        ]

    def combine(self, hidden_states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        means = super().combine(hidden_states)
        if len(self.teachers) == 1:
            return means
        slots = zip(means, zip(*hidden_states, strict=True), strict=True)
        return means + [state - mean for mean, states in slots for state in states]

    def per_teacher(self, values: Sequence[Tensor]) -> dict[Part, Tensor]:
        slots = len(self.teachers[0].slots)
        parts = super().per_teacher(values[:slots])
        differences = zip(self.targets[slots:], values[slots:], strict=False)
        return parts | {target.parts[0]: parts[target.parts[0]] + value for target, value in differences}


def aggregator(config: DistillConfig, widths: Mapping[str, int]) -> Aggregator:
    """A recipe's aggregation of its teachers.

    Args:
        config: the recipe.
        widths: of each teacher's hidden states, by its name.

    Raises:
        UserError: the teachers do not fit together, or one has fewer features than components that are asked for.
    """
    kind: type[Aggregator] = AGGREGATORS.load(config.objective.aggregation)
    teachers = []
    for one in config.teachers:
        width = widths[one.name]
        size = width if one.principal_components is None else one.principal_components
        if size > width:
            raise UserError(
                f"teacher {one.name!r}: principal_components is {size}, but its layers have {width} features"
            )
        teachers.append(TeacherSpec(one.name, one.slots, size, one.weight, one.units))
    return kind(teachers, config.objective)
