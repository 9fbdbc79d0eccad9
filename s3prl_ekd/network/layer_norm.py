"""LayerNorm over the channels that are there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """torch's, except while some channels are pruned: mean and variance are then those of the others.

    Pruned channels must leave no trace in a LayerNorm, or a network whose channels are masked would not be the one that
    lacks them.

    Attributes:
        kept: (C,) True at channels that are there; None: all. The others come out as the bias, and whoever reads them
            must mask it.
    """

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        if self.kept is None:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            kept = self.kept.to(x.dtype)
            count = kept.sum().clamp(min=1)  # random gates may all be shut, which is no reason for NaN
            share = count / len(kept)
            mean = (x @ (kept / count)).unsqueeze(-1)
            # The kept channels' deviations beside zeros have the mean zero and the variance times the channels' share;
            # divided by the share's root they have the variance itself, so that torch's LayerNorm, which is fast, adds
            # eps to the right number.
            centred = (x - mean) * (kept * share.rsqrt())
            weight, bias = self.weight.to(x.dtype) * share.sqrt(), self.bias.to(x.dtype)
            return F.layer_norm(centred, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)
