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


def head_loss(prediction: Tensor, target: Tensor, frame_mask: Tensor) -> HeadLoss:
    """Compare one head's prediction with its target, in fp32.

    Args:
        prediction: (B, F, D).
        target: (B, F, D); finite everywhere, also past an utterance's end.
        frame_mask: (B, F), True at the frames that count.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = prediction.float(), target.float()
        weight = frame_mask.to(prediction.dtype)  # (B, F)
        l1 = ((prediction - target).abs().mean(dim=-1) * weight).sum()
        cosine = F.cosine_similarity(prediction, target, dim=-1)  # (B, F)
        return HeadLoss(l1, (-F.logsigmoid(cosine) * weight).sum(), (cosine.detach() * weight).sum())
