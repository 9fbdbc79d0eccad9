"""Prediction heads: one small network per target, used in distillation only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PredictionHead(nn.Sequential):
    """Linear, GELU, Linear (DistilHuBERT, arXiv 2110.01900, section 3.2): (B, F, D) to (B, F, D')."""

    def __init__(self, hidden_size: int, target_size: int) -> None:
        super().__init__(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, target_size))


class PredictionHeads(nn.ModuleList):
    """One head per target."""

    def __init__(self, hidden_size: int, target_sizes: Sequence[int]) -> None:
        super().__init__(PredictionHead(hidden_size, size) for size in target_sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The student's last hidden state (B, F, D) to one prediction (B, F, D') per target."""
        return [head(x) for head in self]
