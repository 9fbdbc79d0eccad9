"""Gates in training: what a step adds for the budget, what is logged of it, and the smaller student at the end."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from s3prl_ekd import cost
from s3prl_ekd.config.pruning import PruningConfig
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.pruning.shrink import shrink
from s3prl_ekd.student.model import Student

logger = logging.getLogger(__name__)

_MISSED = 0.02
"""Of the budget; a larger miss is warned of."""


def new_gates(config: PruningConfig, student: Student, seed: int) -> Gates:
    """The gates of a recipe, with the same first values in every process.

    Raises:
        UserError: the budget cannot be reached.
    """
    return Gates(
        student,
        config.units,
        config.budget.given,
        warmup_steps=config.warmup_steps,
        drop_rate=config.initial_drop,
        generator=torch.Generator().manual_seed(seed),
    )


def add_penalty_gradient(gates: Gates, step: int) -> dict[str, Tensor]:
    """Add the gradient of the Lagrangian to that of the batches, at the end of a step; what there is to log of it.

    It does not depend on the batches: so it comes in once, after their gradients have been summed over processes and
    made that of a mean over frames.
    """
    with torch.enable_grad():
        penalty, values = gates.penalty(step)
    parameters = list(gates.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(penalty, parameters), strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    kind = gates.budget.kind
    names = {"expected_cost": f"expected_{kind}", "target_cost": f"target_{kind}"}
    return {f"pruning/{names.get(name, name)}": value for name, value in values.items()}


@torch.no_grad()
def shares_left(gates: Gates) -> dict[str, Tensor]:
    """Of each kind of unit that has gates the share whose gate is open on average, by its name in the log."""
    expected = gates.expected_counts()
    units = dict.fromkeys(group.unit for group in gates.groups)
    return {
        f"pruning/left/{unit}": torch.as_tensor(sum(getattr(expected, unit)) / sum(getattr(gates.counts, unit)))
        for unit in units
    }


def smaller_student(student: Student, gates: Gates) -> Student:
    """The student without what its gates drop, and a line in the log about it."""
    gates.eval()
    kind, budget = gates.budget.kind, gates.budget.amount
    expected = float(gates.expected_cost(kind).detach())
    smaller = shrink(student, gates)
    after = cost.UnitCounts.of(smaller.config)
    logger.info(
        "student pruned from %s to %s; of each layer it has %s",
        cost.in_words(gates.sizes, gates.counts),
        cost.in_words(gates.sizes, after),
        "; ".join(f"{unit} {' '.join(map(str, getattr(after, unit)))}" for unit in cost.UNITS),
    )
    for what, amount in (("the gates expect", expected), ("the student has", cost.COSTS[kind](gates.sizes, after))):
        if abs(amount / budget - 1) > _MISSED:
            logger.warning(
                "pruning.budget: %s %s where %s were asked for; train the stage for more steps, or with a higher"
                " pruning.learning_rate",
                what, cost.amount_in_words(kind, amount), cost.amount_in_words(kind, budget),
            )  # fmt: skip
    return smaller
