"""What can be pruned: what a gate multiplies, and how a student's weights become those of one without the unit.

A gate multiplies the input of the next linear map, so a gated student is the same student with other weights, W * z:

==============  ===========================================  ====================================================
units           one is                                       its gate multiplies
==============  ===========================================  ====================================================
conv            an output channel of a convolution           that input channel of the next convolution's weight, or
                                                             column of the feature projection's
heads           an attention head                            its columns of ``out_proj``
intermediate    an inner unit of a feed-forward block        its column of ``output_dense``
positions       two taps of the position convolution, as     their gains in the weight normalization
                far from the middle on either side
==============  ===========================================  ====================================================

A student's weights are a state dict here. The smaller student's are made of it by :meth:`Group.drop`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from s3prl_ekd.cost import FixedSizes, Number, UnitCounts

State = MutableMapping[str, Tensor]


@dataclass(frozen=True)
class Group(ABC):
    """The gates of one kind in one layer.

    Attributes:
        layer: index of the convolution or the transformer layer.
        size: how many gates.
    """

    layer: int
    size: int

    unit: ClassVar[str]
    nested: ClassVar[bool] = False
    """Whether a gate is the product of its own value and those of all before it."""
    least: ClassVar[int] = 0
    """So many always stay."""
    drop_rate: ClassVar[float] = 0.01
    """At the start (see :class:`~s3prl_ekd.pruning.hard_concrete.HardConcrete`): DPHuBERT's."""

    @classmethod
    @abstractmethod
    def all(cls, sizes: FixedSizes, counts: UnitCounts) -> list[Self]:
        """The groups of a student, layer by layer."""

    @property
    @abstractmethod
    def weight(self) -> str:
        """Name of the parameter that the gates multiply."""

    @abstractmethod
    def factor(self, gates: Tensor) -> Tensor:
        """Gates (size,) in a shape that multiplies the parameter."""

    @abstractmethod
    def drop(self, state: State, kept: Tensor) -> None:
        """Take the units away that are not ``kept`` (size,)."""

    def count(self, open_gates: Number) -> Number:
        """What :class:`~s3prl_ekd.cost.UnitCounts` says of the layer where so many gates are open."""
        return open_gates

    def initial_rate(self, drop_rate: float | None) -> float:
        """Drop rate of each gate, for one that is asked for or, None, the group's own."""
        return self.drop_rate if drop_rate is None else drop_rate

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of LayerNorms that average over the units, where the student has them."""
        return ()


@dataclass(frozen=True)
class ConvChannels(Group):
    """Output channels of a convolution."""

    last: bool

    unit = "conv"
    least = 1

    @classmethod
    def all(cls, sizes: FixedSizes, counts: UnitCounts) -> list[Self]:
        last = len(counts.conv) - 1
        return [cls(layer, size, layer == last) for layer, size in enumerate(counts.conv)]

    @property
    def _own(self) -> str:
        return f"feature_extractor.conv_layers.{self.layer}"

    @property
    def weight(self) -> str:
        if self.last:
            return "feature_projection.projection.weight"
        return f"feature_extractor.conv_layers.{self.layer + 1}.conv.weight"

    @property
    def norms(self) -> tuple[str, ...]:
        own = f"{self._own}.layer_norm"
        return (own, "feature_projection.layer_norm") if self.last else (own,)

    def factor(self, gates: Tensor) -> Tensor:
        return gates if self.last else gates.unsqueeze(1)  # of (D, C), or (C', C, k)

    def drop(self, state: State, kept: Tensor) -> None:
        for module in (f"{self._own}.conv", *self.norms):
            _select(state, f"{module}.weight", kept)
            _select(state, f"{module}.bias", kept)
        if self.last:
            _select(state, "feature_projection.scale", kept)
        _select(state, self.weight, kept, dim=1)


@dataclass(frozen=True)
class Heads(Group):
    """Attention heads of a layer."""

    width: int

    unit = "heads"

    @classmethod
    def all(cls, sizes: FixedSizes, counts: UnitCounts) -> list[Self]:
        return [cls(layer, size, sizes.head_dim) for layer, size in enumerate(counts.heads)]

    @property
    def _own(self) -> str:
        return f"encoder.layers.{self.layer}.attention"

    @property
    def weight(self) -> str:
        return f"{self._own}.out_proj.weight"

    def factor(self, gates: Tensor) -> Tensor:
        return gates.repeat_interleave(self.width)

    def drop(self, state: State, kept: Tensor) -> None:
        columns = kept.repeat_interleave(self.width)
        for name in ("q_proj", "k_proj", "v_proj"):
            _select(state, f"{self._own}.{name}.weight", columns)
            _select(state, f"{self._own}.{name}.bias", columns)
        _select(state, self.weight, columns, dim=1)
        _select(state, f"{self._own}.gru_rel_pos_const", kept, dim=1)  # WavLM's


class InnerUnits(Group):
    """Inner units of a layer's feed-forward block."""

    unit = "intermediate"
    drop_rate = 0.5

    @classmethod
    def all(cls, sizes: FixedSizes, counts: UnitCounts) -> list[Self]:
        return [cls(layer, size) for layer, size in enumerate(counts.intermediate)]

    @property
    def _own(self) -> str:
        return f"encoder.layers.{self.layer}.feed_forward"

    @property
    def weight(self) -> str:
        return f"{self._own}.output_dense.weight"

    def factor(self, gates: Tensor) -> Tensor:
        return gates

    def drop(self, state: State, kept: Tensor) -> None:
        _select(state, f"{self._own}.intermediate_dense.weight", kept)
        _select(state, f"{self._own}.intermediate_dense.bias", kept)
        _select(state, self.weight, kept, dim=1)


@dataclass(frozen=True)
class PositionTaps(Group):
    """Pairs of taps of the position convolution, from the inside out; what goes is outermost.

    The tap in the middle, or the two of a kernel of even width, have no gate.
    """

    middle: int

    unit = "positions"
    nested = True

    @classmethod
    def all(cls, sizes: FixedSizes, counts: UnitCounts) -> list[Self]:
        (taps,) = counts.positions
        middle = 2 - taps % 2
        return [cls(0, (taps - middle) // 2, middle)]

    def count(self, open_gates: Number) -> Number:
        return self.middle + 2 * open_gates

    def initial_rate(self, drop_rate: float | None) -> float:
        """As if the outermost pair, whose gate is the product of all, were the only one."""
        return float(1 - (1 - super().initial_rate(drop_rate)) ** (1 / max(1, self.size)))

    @property
    def _own(self) -> str:
        return "encoder.pos_conv_embed.conv.parametrizations.weight"

    @property
    def weight(self) -> str:
        return f"{self._own}.original0"

    def factor(self, gates: Tensor) -> Tensor:
        return self._taps(gates)

    def drop(self, state: State, kept: Tensor) -> None:
        taps = self._taps(kept)
        _select(state, f"{self._own}.original0", taps, dim=2)
        _select(state, f"{self._own}.original1", taps, dim=2)

    def _taps(self, pairs: Tensor) -> Tensor:
        """(size,) of pairs to (K,) of taps."""
        return torch.cat((pairs.flip(0), pairs.new_ones(self.middle), pairs))


def _select(state: State, name: str, kept: Tensor, dim: int = 0) -> None:
    if name in state:
        state[name] = state[name].index_select(dim, kept.nonzero().flatten())


KINDS: Mapping[str, type[Group]] = {kind.unit: kind for kind in (ConvChannels, Heads, InnerUnits, PositionTaps)}
"""By their names in a recipe."""


def groups(units: Sequence[str], sizes: FixedSizes, counts: UnitCounts) -> list[Group]:
    """All groups of these units."""
    return [group for unit in units for group in KINDS[unit].all(sizes, counts)]


def counts_with(counts: UnitCounts, groups: Sequence[Group], open_gates: Sequence[Number]) -> UnitCounts:
    """What a student of ``counts`` has if of each group so many gates are open."""
    left: dict[str, list[Number]] = {}
    for group, number in zip(groups, open_gates, strict=True):
        left.setdefault(group.unit, []).append(group.count(number))
    return dataclasses.replace(counts, **left)
