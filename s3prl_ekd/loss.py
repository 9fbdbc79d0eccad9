"""The distillation loss of one prediction head (DistilHuBERT, arXiv 2110.01900, equation 1): pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class HeadLoss:
    """Sums over real frames, so that a mean can be taken over several batches or processes.

    Attributes:
        l1: sum over frames of the mean absolute difference over features, a scalar.
        cosine_loss: sum over frames of -log sigmoid(cosine similarity), a scalar.
        cosine: sum over frames of the cosine similarity, a scalar without gradient.
    """

    l1: Tensor
    cosine_loss: Tensor
    cosine: Tensor


def head_loss(prediction: Tensor, target: Tensor) -> HeadLoss:
    """Compare one head's prediction with its target, in fp32.

    Args:
        prediction: (N, D), real frames only.
        target: (N, D).
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = prediction.float(), target.float()
        l1 = F.l1_loss(prediction, target, reduction="sum") / prediction.shape[-1]
        cosine = F.cosine_similarity(prediction, target, dim=-1)  # (N,)
        return HeadLoss(l1, -F.logsigmoid(cosine).sum(), cosine.detach().sum())
