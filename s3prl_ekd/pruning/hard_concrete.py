"""Random gates between 0 and 1 that are often exactly 0 or 1 (Louizos et al., arXiv 1712.01312, section 2.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_TEMPERATURE = 2 / 3  # beta
_LOW, _HIGH = -0.1, 1.1  # gamma and zeta: the interval that a gate is stretched to before it is clamped
_MEAN_SLOPE = 0.9
_DEVIATION = 0.01  # of the first log alphas


class HardConcrete(nn.Module):
    """n gates: z = clamp(s (zeta - gamma) + gamma, 0, 1), s = sigmoid((logit u + log alpha) / beta), u uniform.

    Attributes:
        log_alpha: (n,) what is learnt; the larger, the more open a gate.
    """

    def __init__(self, drop_rates: Tensor, *, generator: torch.Generator | None = None) -> None:
        """
        Args:
            drop_rates: r (n,): log alpha starts near logit(1 - r), as DPHuBERT's; the share of gates that are 0 is
                lower than r.
            generator: of what is added to it, normal with deviation 0.01; None: torch's own.
        """
        super().__init__()
        noise = torch.randn(len(drop_rates), generator=generator)
        self.log_alpha = nn.Parameter(_DEVIATION * noise - torch.logit(drop_rates))

    def sample(self) -> Tensor:
        """(n,) gates, drawn by torch's generator as dropout is."""
        noise = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid((torch.logit(noise) + self.log_alpha) / _TEMPERATURE)
        return (s * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def probability(self) -> Tensor:
        """(n,) how likely each gate is not 0; their sum is the expected L0 norm."""
        return torch.sigmoid(self.log_alpha - _TEMPERATURE * math.log(-_LOW / _HIGH))

    def mean(self) -> Tensor:
        """(n,) the gates' means, within 0.005: sigmoid(0.9 log alpha), never quite 0.

        It has no closed form; DPHuBERT takes sigmoid(1.2 log alpha).
        """
        return torch.sigmoid(_MEAN_SLOPE * self.log_alpha)
