"""Prediction heads: small networks that predict targets from a student's hidden states, used in distillation only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from s3prl_ekd.config.base import require
from s3prl_ekd.config.recipe import (
    PREDICTION_HEADS,
    DistillConfig,
    HeadsConfig,
    StudentConfig,
    last_layer,
    require_all_layers_trained,
)
from s3prl_ekd.targets import Target


class Tap(NamedTuple):
    """What is predicted, and from where.

    Attributes:
        layer: index of the student's hidden state, counted as a teacher's: 0 is the input of the first transformer
            layer, i the output of layer i; -1: the last.
        target: name of what is predicted, such as ``hubert/4``; empty if it is not known.
    """

    layer: int = -1
    target: str = ""


class PredictionHead(nn.Sequential):
    """Linear, GELU, Linear (DistilHuBERT, arXiv 2110.01900, section 3.2): (..., D) to (..., D')."""

    def __init__(self, hidden_size: int, target_size: int, inner_size: int | None = None) -> None:
        inner_size = hidden_size if inner_size is None else inner_size
        super().__init__(nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Linear(inner_size, target_size))

    @staticmethod
    def sizes(state: Mapping[str, Tensor]) -> tuple[int, int | None]:
        """Width of the target and inner width of a head with this state."""
        return state["2.bias"].shape[0], state["0.bias"].shape[0]


class LinearHead(nn.Linear):
    """One Linear (DPHuBERT, arXiv 2305.17651, section 2.3): (..., D) to (..., D')."""

    def __init__(self, hidden_size: int, target_size: int, inner_size: int | None = None) -> None:
        """``inner_size`` is for heads that have one."""
        super().__init__(hidden_size, target_size)

    @staticmethod
    def sizes(state: Mapping[str, Tensor]) -> tuple[int, int | None]:
        """Width of the target and inner width of a head with this state."""
        return state["bias"].shape[0], None

    def start_as_identity(self) -> None:
        """Weights with which the prediction is the hidden state, which must be as wide as the target."""
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)


class PredictionHeads(nn.ModuleList):
    """The heads, each stored once, and the taps that use them.

    Attributes:
        taps: one for each target.
        uses: number of the head of each tap; several taps may share one.
        kind: the heads', a name in :data:`~s3prl_ekd.config.recipe.PREDICTION_HEADS`.
    """

    def __init__(
        self,
        hidden_size: int,
        target_sizes: Sequence[int],
        inner_size: int | None = None,
        taps: Sequence[Tap] | None = None,
        *,
        uses: Sequence[int] | None = None,
        kind: str = "mlp",
    ) -> None:
        """``target_sizes`` are of each head; without ``taps`` and ``uses`` each has one tap, on the last layer."""
        head = PREDICTION_HEADS.load(kind)
        super().__init__(head(hidden_size, size, inner_size) for size in target_sizes)
        self.uses = tuple(range(len(target_sizes)) if uses is None else uses)
        self.taps = tuple(Tap() for _ in self.uses) if taps is None else tuple(taps)
        self.kind = kind

    @property
    def reads_layer_input(self) -> bool:
        """Whether a tap is on the input of the first layer."""
        return any(tap.layer == 0 for tap in self.taps)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """A student's hidden states, (..., D) each and counted as :class:`Tap` says, to one prediction (..., D') per
        tap."""
        if not isinstance(states, list | tuple):  # a tensor's first index is no layer
            raise TypeError(f"prediction heads take a list of all hidden states, found a {type(states).__name__}")
        return [self[head](states[tap.layer]) for head, tap in zip(self.uses, self.taps, strict=True)]


def stored_sizes(heads: Mapping[str, Tensor], number: int, kind: str) -> tuple[int, int | None]:
    """Width of the target and inner width of one of the heads of a state dict.

    Raises:
        KeyError: it has not the weights that heads of this kind have.
    """
    start = f"{number}."
    state = {name.removeprefix(start): tensor for name, tensor in heads.items() if name.startswith(start)}
    sizes: tuple[int, int | None] = PREDICTION_HEADS.load(kind).sizes(state)
    return sizes


class HeadPlan(NamedTuple):
    """Which heads a recipe's targets have.

    Attributes:
        taps: one for each target.
        uses: number of the head of each tap.
    """

    taps: tuple[Tap, ...]
    uses: tuple[int, ...]


def plan_heads(config: DistillConfig, targets: Sequence[Target]) -> HeadPlan:
    """The taps that the recipe's ``heads`` give to its targets, and which head each of them uses."""
    taps = tuple(Tap(_layer(config, target), target.name) for target in targets)
    owners = [_owner(config.heads, target) for target in targets]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    return HeadPlan(taps, tuple(numbers[owner] for owner in owners))


def _layer(config: DistillConfig, target: Target) -> int:
    """From which of the student's layers a target is predicted."""
    start = config.heads.from_
    if isinstance(start, tuple):
        return target.student_layer if target.slot is None else start[target.slot]
    if start == "last":
        return target.student_layer
    name, _ = target.parts[0]  # where there are several teachers, their layers are the same
    teacher = next(teacher for teacher in config.teachers if teacher.name == name)
    if target.slot is None:
        return target.student_layer if teacher.units is None else teacher.units.layer
    return last_layer(teacher.slots[target.slot])


def _owner(heads: HeadsConfig, target: Target) -> tuple[str, ...]:
    """Equal for targets that have one head together: those of one source whose slots share one."""
    group = next((str(group) for group in heads.share if target.slot in group), None)
    return (target.name,) if group is None else (target.source, group)


def new_heads(config: DistillConfig, targets: Sequence[Target], student: StudentConfig) -> PredictionHeads:
    """A recipe's heads with new weights.

    Raises:
        UserError: they do not fit to the student's sizes or to each other.
    """
    taps, uses = plan_heads(config, targets)
    depth = student.num_hidden_layers
    for tap in taps:
        require(
            tap.layer <= depth,
            f"heads.from: {tap.target} is to be predicted from layer {tap.layer}, but the student has {depth}",
        )
    require_all_layers_trained(max(depth if tap.layer == -1 else tap.layer for tap in taps), depth)
    sizes: dict[int, int] = {}
    for target, number in zip(targets, uses, strict=True):
        size = sizes.setdefault(number, target.size)
        require(
            size == target.size,
            f"heads.share: {target.name} has {target.size} features and another slot of its head {size}; they need"
            " equal widths",
        )
    heads = PredictionHeads(student.hidden_size, list(sizes.values()), taps=taps, uses=uses, kind=config.heads.kind)
    if config.heads.initialize == "identity":
        _start_as_identity(heads, targets, student.hidden_size)
    return heads


def _start_as_identity(heads: PredictionHeads, targets: Sequence[Target], hidden_size: int) -> None:
    """Those of hidden states; units are no features of the student's."""
    for target, number in zip(targets, heads.uses, strict=True):
        if target.kind != "states":
            continue
        require(
            target.size == hidden_size,
            f"heads.initialize: identity needs targets as wide as the student, {hidden_size}; {target.name} has"
            f" {target.size} features",
        )
        head = heads[number]
        assert isinstance(head, LinearHead), "the recipe refuses identity for others"
        head.start_as_identity()
