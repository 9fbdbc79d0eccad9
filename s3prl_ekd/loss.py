"""The terms of the distillation loss (DistilHuBERT, arXiv 2110.01900, equation 1): pure functions of two tensors.

A term takes a prediction and its target, both (N, D) in fp32 and of real frames only, and gives sums over the frames,
so that a mean can be taken over several batches or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ekd.config.recipe import LOSS_TERMS, ObjectiveConfig


class TermSums(NamedTuple):
    """One term's sums over the frames of a batch, scalars.

    Attributes:
        loss: what is minimised.
        logged: what the log tells under the term's name.
    """

    loss: Tensor
    logged: Tensor


def l1(prediction: Tensor, target: Tensor) -> TermSums:
    """The mean absolute difference over features."""
    distance = F.l1_loss(prediction, target, reduction="sum") / prediction.shape[-1]
    return TermSums(distance, distance)


def cosine(prediction: Tensor, target: Tensor) -> TermSums:
    """-log sigmoid of the cosine similarity; the log tells the similarity itself."""
    similarity = F.cosine_similarity(prediction, target, dim=-1)  # (N,)
    return TermSums(-F.logsigmoid(similarity).sum(), similarity.sum())


class Loss:
    """The weighted sum of a recipe's loss terms."""

    def __init__(self, objective: ObjectiveConfig) -> None:
        self.terms: Mapping[str, Callable[[Tensor, Tensor], TermSums]] = {
            name: LOSS_TERMS.load(name) for name in objective.terms
        }
        self.weights = {name: term.weight for name, term in objective.terms.items()}

    def __call__(
        self, prediction: Tensor, target: Tensor, *, details: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare one head's prediction (N, D) with its target (N, D), in fp32; real frames only.

        Args:
            details: compute terms of weight 0, too.

        Returns:
            The weighted sum, a scalar, and what the log is to tell of each term, without gradient.

        Raises:
            ValueError: the two differ in shape.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
        with torch.autocast(prediction.device.type, enabled=False):
            prediction, target = prediction.float(), target.float()
            sums = {
                name: term(prediction, target) for name, term in self.terms.items() if details or self.weights[name] > 0
            }
            total = sum(
                (self.weights[name] * one.loss for name, one in sums.items() if self.weights[name] > 0),
                start=prediction.new_zeros(()),
            )
        return total, {name: one.logged.detach() for name, one in sums.items()}
