"""The position convolution by Fourier transforms, for CPUs: same numbers as ``conv1d``, several times as fast.

A kernel as wide as the position convolution's (128 frames) costs a CPU more than its arithmetic: at 48 channels a group
the products are too small. Overlap-save (Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7.3) cuts
the frames into blocks of fixed size, each overlapping the one before by a kernel, and multiplies spectra; cost and
memory grow with the length and nothing worse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NARROWEST = 64  # kernel; below, conv1d is as fast
_FEWEST_KERNELS = 1.5  # of input; below, the weights' own spectra cost too much
_CACHED_BYTES = 4 << 20  # of the weights' spectra: what is worked on at a time, so that it stays in a core's caches


def applicable(x: Tensor, kernel: int) -> bool:
    """Whether it pays for so many frames (B, F, D)."""
    return x.device.type == "cpu" and kernel >= _NARROWEST and x.shape[0] * x.shape[1] >= _FEWEST_KERNELS * kernel


def grouped_conv(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, groups: int) -> Tensor:
    """``conv1d(x', weight * scale, bias, padding=kernel // 2, groups=groups)``, cut to as many frames as went in.

    Args:
        x: (B, F, D).
        weight: (D', D / groups, K), as conv1d's.
        scale: (K,), such as weight normalization's: applied some groups at a time, since the weight is the largest
            tensor of an inference.
        bias: (D',).
        groups: of channels.

    Returns:
        (B, F, D').
    """
    with torch.autocast(x.device.type, enabled=False):
        x, weight, scale, bias = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, weight, scale, bias))
        batch, frames, kernel = x.shape[0], x.shape[1], weight.shape[2]
        size = 1 << (2 * kernel - 1).bit_length()  # of a block: a power of two, at least half of it new frames
        hop = size - kernel + 1
        blocks = -(-frames // hop)
        before = kernel // 2
        x = F.pad(x, (0, 0, before, blocks * hop + kernel - 1 - before - frames))
        inputs = x.unfold(1, size, hop).unflatten(2, (groups, -1)).permute(2, 0, 1, 3, 4)
        weights = weight.unflatten(0, (groups, -1))
        together = max(1, _CACHED_BYTES // (weights[0, :, :, 0].numel() * (size // 2 + 1) * 2 * weight.element_size()))
        parts = zip(inputs.split(together), weights.split(together), strict=True)
        outputs = [_circular(signal, taps * scale, hop) for signal, taps in parts]
        y = torch.cat(outputs, dim=2)  # (B * blocks, hop, groups, D' / groups)
        return y.view(batch, blocks * hop, -1).add_(bias)[:, :frames]


def _circular(blocks: Tensor, weight: Tensor, hop: int) -> Tensor:
    """(G, B, N, C, size) correlated with (G, C', C, K): the ``hop`` outputs that do not wrap, (B * N, hop, G, C')."""
    size = blocks.shape[-1]
    # Contiguous, since complex products would copy one bin at a time.
    signal = torch.fft.rfft(blocks).flatten(1, 2).permute(0, 3, 1, 2).contiguous()  # (G, bins, B * N, C)
    response = torch.fft.rfft(weight, size).permute(0, 3, 2, 1).conj().contiguous()  # (G, bins, C, C')
    return torch.fft.irfft((signal @ response).permute(2, 0, 3, 1), size)[..., :hop].permute(0, 3, 1, 2)
