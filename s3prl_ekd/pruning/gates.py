"""Gates on a student's units, and what the student is expected to cost with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd import cost
from s3prl_ekd.network.layer_norm import LayerNorm
from s3prl_ekd.pruning.budget import Budget
from s3prl_ekd.pruning.choice import choose
from s3prl_ekd.pruning.hard_concrete import HardConcrete
from s3prl_ekd.pruning.units import Group, counts_with, groups
from s3prl_ekd.student.model import Student


class Gates(nn.Module):
    """Gates on a student, which is none of their submodules.

    In train mode they are random, drawn by torch's generator as dropout is. In eval mode those of units that shrinking
    will drop are 0 and the others what they are on average, so that the gated student is the smaller one.

    Attributes:
        groups: of gates, in the order in which they stand in ``hard_concrete.log_alpha``.
        sizes: of the student.
        counts: of the student without gates.
        budget: and how the expected cost is brought to it.
    """

    def __init__(
        self,
        student: Student,
        units: Sequence[str],
        budget: Mapping[str, float],
        *,
        warmup_steps: int = 5000,
        drop_rate: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """
        Args:
            student: to be pruned; only its sizes are read.
            units: what may go, some of :data:`s3prl_ekd.cost.UNITS`.
            budget: ``{"parameters": 23.6e6}``, ``{"sparsity": 0.75}`` or ``{"multiply_adds": 2e9}`` (per second).
            warmup_steps: in which the target moves to the budget.
            drop_rate: at the start; None: DPHuBERT's, which is higher for inner units.
            generator: of the first values; None: torch's own.

        Raises:
            UserError: unknown units, or a budget that they cannot reach.
        """
        super().__init__()
        self.sizes, self.counts = cost.FixedSizes.of(student.config), cost.UnitCounts.of(student.config)
        kind, amount = cost.allowance(budget, self.sizes, self.counts, units)
        self.groups = tuple(groups(units, self.sizes, self.counts))
        rates = [torch.full((group.size,), group.initial_rate(drop_rate)) for group in self.groups]
        self.hard_concrete = HardConcrete(torch.cat(rates), generator=generator)
        full = float(cost.COSTS[kind](self.sizes, self.counts))
        initial = float(self.expected_cost(kind).detach())
        self.budget = Budget(kind, amount, full=full, initial=initial, warmup_steps=warmup_steps)

    def by_group(self, values: Tensor) -> list[Tensor]:
        """One value for each gate (n,), split into (size,); nested gates multiplied up."""
        parts = values.split([group.size for group in self.groups])
        return [_products(part) if group.nested else part for group, part in zip(self.groups, parts, strict=True)]

    # ---- what is left

    def expected_counts(self) -> cost.UnitCounts:
        """How much of everything has an open gate on average; scalar tensors where there are gates."""
        probabilities = self.by_group(self.hard_concrete.probability())
        return counts_with(self.counts, self.groups, [probability.sum() for probability in probabilities])

    def expected_cost(self, kind: str) -> Tensor:
        """The mean of a cost, a key of :data:`s3prl_ekd.cost.COSTS`: a scalar with a gradient.

        It is that of the mean counts, since gates are independent and no formula multiplies counts of one layer.
        """
        expected: Tensor = cost.COSTS[kind](self.sizes, self.expected_counts())
        return expected

    def penalty(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What the loss gains in a step, counted from 0: a scalar, and what there is to log."""
        return self.budget.penalty(self.expected_cost(self.budget.kind), step)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """For an optimizer: log alphas descend, the Lagrangian's multipliers ascend, neither decays."""
        return [
            {"params": [self.hard_concrete.log_alpha], "lr": lr, "weight_decay": 0.0, "maximize": False},
            {"params": [self.budget.lambdas], "lr": lr, "weight_decay": 0.0, "maximize": True},
        ]

    @torch.no_grad()
    def kept(self) -> list[Tensor]:
        """Of each group (size,) on the CPU, True at units that stay: with these the student costs no more than the
        budget, and so nearly as single units allow."""
        count = cost.COSTS[self.budget.kind]

        def affordable(numbers: Sequence[int]) -> bool:
            return bool(count(self.sizes, counts_with(self.counts, self.groups, numbers)) <= self.budget.amount)

        probabilities = [probability.cpu() for probability in self.by_group(self.hard_concrete.probability())]
        least, nested = [group.least for group in self.groups], [group.nested for group in self.groups]
        return choose(probabilities, least, affordable, nested)

    def kept_counts(self) -> cost.UnitCounts:
        """How much of everything the smaller student has."""
        return counts_with(self.counts, self.groups, [int(kept.sum()) for kept in self.kept()])

    @torch.no_grad()
    def final(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """Of each group (size,) the gates in the smaller student's weights; 0 at units that are not ``kept``."""
        means = self.by_group(self.hard_concrete.mean())
        return [mean * stays.to(mean.device) for mean, stays in zip(means, kept, strict=True)]

    # ---- on a student

    @contextlib.contextmanager
    def attached(self, student: Student) -> Iterator[None]:
        """A block in which the student has gates, drawn on entry; gradients reach both.

        Inside, some of the student's parameters are products with gates; nothing else is added to its computation, so
        that its fast forms stay.
        """
        values = self.by_group(self.hard_concrete.sample()) if self.training else self.final(self.kept())
        modules = dict(student.named_modules())
        with contextlib.ExitStack() as stack:
            for group, gates in zip(self.groups, values, strict=True):
                stack.enter_context(_gated(modules, group, gates))
            yield


def _products(values: Tensor) -> Tensor:
    """The cumulative product of values (n,) from 0 to 1; as a sum of logarithms, since the gradient of torch's cumprod
    waits for the GPU to learn whether there is a zero."""
    from_zero_on = (values == 0).cumsum(0) > 0
    return values.clamp(min=1e-12).log().cumsum(0).exp().masked_fill(from_zero_on, 0.0)


@contextlib.contextmanager
def _gated(modules: Mapping[str, nn.Module], group: Group, gates: Tensor) -> Iterator[None]:
    """A block in which one group of a student, given by its modules, has these gates."""
    path, _, name = group.weight.rpartition(".")
    parameters: dict[str, Any] = modules[path]._parameters
    original = parameters[name]
    norms = [norm for norm in map(modules.get, group.norms) if isinstance(norm, LayerNorm)]
    parameters[name] = original * group.factor(gates).to(original.dtype)
    for norm in norms:
        norm.kept = gates.detach() > 0
    try:
        yield
    finally:
        parameters[name] = original
        for norm in norms:
            norm.kept = None
