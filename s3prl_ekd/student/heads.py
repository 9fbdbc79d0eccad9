"""Prediction heads: one small network per target, used in distillation only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Tap(NamedTuple):
    """What a head predicts, and from where.

    Attributes:
        layer: index of the student's hidden state; -1: the last.
        target: name of what is predicted, such as ``hubert/4``; empty if it is not known.
    """

    layer: int = -1
    target: str = ""


class PredictionHead(nn.Sequential):
    """Linear, GELU, Linear (DistilHuBERT, arXiv 2110.01900, section 3.2): (..., D) to (..., D')."""

    def __init__(self, hidden_size: int, target_size: int, inner_size: int | None = None) -> None:
        inner_size = hidden_size if inner_size is None else inner_size
        super().__init__(nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Linear(inner_size, target_size))


class PredictionHeads(nn.ModuleList):
    """One head per target.

    Attributes:
        taps: of each head.
    """

    def __init__(
        self,
        hidden_size: int,
        target_sizes: Sequence[int],
        inner_size: int | None = None,
        taps: Sequence[Tap] | None = None,
    ) -> None:
        super().__init__(PredictionHead(hidden_size, size, inner_size) for size in target_sizes)
        self.taps = tuple(Tap() for _ in target_sizes) if taps is None else tuple(taps)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """All of a student's hidden states, (..., D) each, to one prediction (..., D') per target."""
        if not isinstance(states, list | tuple):  # a tensor's first index is no layer
            raise TypeError(f"prediction heads take a list of all hidden states, found a {type(states).__name__}")
        return [head(states[tap.layer]) for head, tap in zip(self, self.taps, strict=True)]
