"""Prediction heads: one small network per target, used in distillation only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PredictionHead(nn.Sequential):
    """Linear, GELU, Linear (DistilHuBERT, arXiv 2110.01900, section 3.2): (..., D) to (..., D')."""

    def __init__(self, hidden_size: int, target_size: int, inner_size: int | None = None) -> None:
        inner_size = hidden_size if inner_size is None else inner_size
        super().__init__(nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Linear(inner_size, target_size))


class PredictionHeads(nn.ModuleList):
    """One head per target."""

    def __init__(self, hidden_size: int, target_sizes: Sequence[int], inner_size: int | None = None) -> None:
        super().__init__(PredictionHead(hidden_size, size, inner_size) for size in target_sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The student's last hidden state (..., D) to one prediction (..., D') per target."""
        return [head(x) for head in self]
