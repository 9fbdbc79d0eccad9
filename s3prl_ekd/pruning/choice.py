"""Which units stay at the end of pruning."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def choose(
    probabilities: Sequence[Tensor],
    least: Sequence[int],
    affordable: Callable[[Sequence[int]], bool],
    nested: Sequence[bool] | None = None,
) -> list[Tensor]:
    """The most probable units of each group, in all as many as can be had.

    A group keeps as many as its gates expect, E = sum of p, give or take a share of its size that is the same for all
    groups: the r-th most probable of n stays if (E - r + 1/2) / n is above a threshold, which is near 0 when the gates
    meet their budget, and lies as low as can be had. What is then left over goes to further units in the same order,
    past those that cost too much: an attention head may be too large where an inner unit is not.

    Args:
        probabilities: of each group's gates to be open, (n,).
        least: so many of each group stay in any case.
        affordable: whether these numbers of units, one for each group, can be had; no more if any is larger.
        nested: of each group whether a unit can stay only with all before it, whatever rounding has made of their
            probabilities; None: of no group.

    Returns:
        Of each group (n,) bool, True at what stays.
    """
    orders = [
        torch.arange(len(group)) if in_order else torch.argsort(group, descending=True, stable=True)
        for group, in_order in zip(probabilities, nested or [False] * len(probabilities), strict=True)
    ]
    scores = [_scores(group, first) for group, first in zip(probabilities, least, strict=True)]
    sizes = torch.tensor([len(group) for group in probabilities])
    best_first = torch.argsort(torch.cat(scores), descending=True, stable=True)
    owners = torch.arange(len(sizes)).repeat_interleave(sizes)[best_first]  # the group of each unit

    def numbers(units: int) -> list[int]:
        return torch.bincount(owners[:units], minlength=len(sizes)).tolist()

    candidates = range(sum(least) + 1, len(owners) + 1)
    most = sum(least) + bisect.bisect_left(candidates, True, key=lambda units: not affordable(numbers(units)))
    kept, growing = numbers(most), set(range(len(sizes)))
    for group in owners[most:].tolist():
        if group in growing:
            kept[group] += 1
            if not affordable(kept):
                kept[group] -= 1
                growing.discard(group)
                if not growing:
                    break
    masks = [torch.zeros(len(order), dtype=torch.bool) for order in orders]
    return [mask.index_fill(0, order[:n], True) for mask, order, n in zip(masks, orders, kept, strict=True)]


def _scores(probabilities: Tensor, least: int) -> Tensor:
    """(n,) of a group's units, from the most probable on."""
    count = len(probabilities)
    rank = torch.arange(count, dtype=torch.float64)
    scores = (probabilities.double().sum() - rank - 0.5) / max(1, count)
    scores[:least] = math.inf
    return scores
