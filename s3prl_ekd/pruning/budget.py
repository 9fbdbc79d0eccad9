"""The Lagrangian that brings an expected cost to a budget (arXiv 2305.17651, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Budget(nn.Module):
    """lambda1 e + lambda2 e^2 of the error e = (cost - target) / full cost.

    The gates' optimizer descends, that of the lambdas ascends, so that the penalty grows as long as the target is
    missed. The target moves linearly from the cost at the start to the budget.

    Attributes:
        kind: of cost, a key of :data:`s3prl_ekd.cost.COSTS`.
        amount: how much of it the smaller student may cost.
        lambdas: (2,), zero at the start.
    """

    initial: Tensor

    def __init__(self, kind: str, amount: float, *, full: float, initial: float, warmup_steps: int) -> None:
        """
        Args:
            kind: see above.
            amount: see above.
            full: cost of the student without gates.
            initial: its expected cost before the first step.
            warmup_steps: of the target.
        """
        super().__init__()
        self.kind, self.amount = kind, amount
        self._full, self._warmup_steps = full, warmup_steps
        self.lambdas = nn.Parameter(torch.zeros(2))
        self.register_buffer("initial", torch.tensor(initial))

    def target(self, step: int) -> Tensor:
        """The cost that is aimed at in a step, counted from 0."""
        done = min(1.0, step / self._warmup_steps) if self._warmup_steps else 1.0
        return torch.lerp(self.initial, torch.full_like(self.initial, self.amount), done)

    def penalty(self, cost: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What the loss gains by an expected cost, and what there is to log."""
        target = self.target(step)
        error = (cost - target) / self._full
        first, second = self.lambdas
        values = {"expected_cost": cost, "target_cost": target, "lambda1": first, "lambda2": second}
        return first * error + second * error.square(), {name: value.detach() for name, value in values.items()}
