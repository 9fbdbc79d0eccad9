"""The terms of the distillation loss: pure functions of a prediction and its target.

A term gets both as (N, D) in fp32, real frames only, one utterance after another, and gives sums over the frames, so
that a mean can be taken over several batches or processes. What is computed of an utterance as a whole counts once for
each of its frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ekd.config.recipe import LOSS_TERMS, UNIT_TERMS, LossTermConfig, ObjectiveConfig
from s3prl_ekd.network.frames import Packing


class Comparison(NamedTuple):
    """What a term is computed from.

    Attributes:
        prediction, target: (N, D).
        packing: how the rows make up utterances.
        settings: of the term in the recipe.
    """

    prediction: Tensor
    target: Tensor
    packing: Packing
    settings: LossTermConfig


class TermSums(NamedTuple):
    """One term's sums over the frames of a batch, scalars.

    Attributes:
        loss: what is minimised.
        logged: what the log tells under the term's name.
    """

    loss: Tensor
    logged: Tensor


Term = Callable[[Comparison], TermSums]


def l1(given: Comparison) -> TermSums:
    """The mean absolute difference over features (DistilHuBERT, arXiv 2110.01900, equation 1)."""
    distance = F.l1_loss(given.prediction, given.target, reduction="sum") / given.prediction.shape[-1]
    return TermSums(distance, distance)


def l2(given: Comparison) -> TermSums:
    """The mean squared difference over features."""
    distance = F.mse_loss(given.prediction, given.target, reduction="sum") / given.prediction.shape[-1]
    return TermSums(distance, distance)


def cosine(given: Comparison) -> TermSums:
    """-log sigmoid of the cosine similarity (DistilHuBERT, as l1), or 1 - similarity (DPHuBERT, arXiv 2305.17651, has
    minus it); the log tells the similarity itself. Only the prediction's direction counts, not its length."""
    similarity = F.cosine_similarity(given.prediction, given.target, dim=-1)  # (N,)
    loss = (1 - similarity).sum() if given.settings.form == "raw" else -F.logsigmoid(similarity).sum()
    return TermSums(loss, similarity.sum())


def kl(given: Comparison) -> TermSums:
    """T^2 KL(softmax(target / T), softmax(prediction / T)) of a frame's logits of units (arXiv 1503.02531, section 2),
    which has the same gradient whatever is added to all logits of a frame."""
    temperature = given.settings.temperature or 1.0
    log_p, log_q = (F.log_softmax(logits / temperature, dim=-1) for logits in (given.target, given.prediction))
    divergence = temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return TermSums(divergence, divergence)


def gram(given: Comparison) -> TermSums:
    """How alike an utterance's frames are to each other: the mean squared difference of the F x F entries of Z Z^T / D.

    The idea is STaRHuBERT's temporal relation (arXiv 2312.09040); the formula is ours, since that could not be read.
    """
    packing = given.packing
    # (B, F, D) and zero past an utterance's end, and so are the products.
    prediction, target = (packing.unpack(rows) / rows.shape[-1] ** 0.5 for rows in (given.prediction, given.target))
    difference = torch.baddbmm(prediction @ prediction.mT, target, target.mT, alpha=-1)  # (B, F, F)
    frames = packing.frames.to(difference.device, difference.dtype, non_blocking=True).clamp(min=1)
    distance = (difference.square().sum((1, 2)) / frames).sum()  # the mean over F^2 pairs, for each of F frames
    return TermSums(distance, distance)


_CONSTANT_BELOW = 1e-6  # a feature that varies by less than this share of its size is constant
_MIN_SPREAD = 1e-4  # share of the target's variation that a prediction has at least, lest the gradient explode


def correlation(given: Comparison) -> TermSums:
    """1 - Pearson's correlation over an utterance's time, mean over features; the log tells the correlation.

    A feature that is constant in the target has nothing to follow and counts as matched; one that is constant in the
    prediction alone has correlation 0. Neither the prediction's mean nor its size counts.
    """
    packing = given.packing
    frames = packing.frames.to(given.target.device, given.target.dtype, non_blocking=True)[:, None]  # (B, 1)
    prediction, _ = _variation(given.prediction, packing, frames)
    target, size = _variation(given.target, packing, frames)
    spread = torch.linalg.vector_norm(target, dim=1)  # (B, D)
    moves = spread > _CONSTANT_BELOW * size
    spread = spread.where(moves, 1.0)
    spread_of_prediction = torch.linalg.vector_norm(prediction, dim=1).maximum(_MIN_SPREAD * spread)
    pearson = (prediction * target).sum(1) / (spread_of_prediction * spread)
    similarity = (pearson.where(moves, 1.0).mean(-1, keepdim=True) * frames).sum()
    return TermSums(frames.sum() - similarity, similarity)


def _variation(rows: Tensor, packing: Packing, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The rows as (B, F, D) less each utterance's mean, zero past its end; and the norm (B, D) of what they were."""
    padded = packing.unpack(rows)
    centred = padded - padded.sum(1, keepdim=True) / frames.clamp(min=1)[:, None]
    return centred * packing.mask()[..., None], torch.linalg.vector_norm(padded, dim=1)


class Loss:
    """The weighted sum of a recipe's loss terms."""

    def __init__(self, objective: ObjectiveConfig) -> None:
        self.settings = objective.terms
        self.terms: dict[str, Term] = {name: LOSS_TERMS.load(name) for name in self.settings}

    def __call__(
        self, prediction: Tensor, target: Tensor, packing: Packing, *, units: bool = False, details: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare one head's prediction (N, D) with its target (N, D), in fp32; real frames only.

        Args:
            packing: how the rows make up utterances.
            units: whether they are logits of units, for which there are terms of their own.
            details: compute terms of weight 0, too.

        Returns:
            The weighted sum, a scalar, and what the log is to tell of each term, without gradient.

        Raises:
            ValueError: the two differ in shape.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
        wanted = [
            (name, one)
            for name, one in self.settings.items()
            if (name in UNIT_TERMS) == units and (details or one.weight > 0)
        ]
        with torch.autocast(prediction.device.type, enabled=False):
            prediction, target = prediction.float(), target.float()
            sums = {name: self.terms[name](Comparison(prediction, target, packing, one)) for name, one in wanted}
            total = sum(
                (one.weight * sums[name].loss for name, one in wanted if one.weight > 0),
                start=prediction.new_zeros(()),
            )
        return total, {name: one.logged.detach() for name, one in sums.items()}
