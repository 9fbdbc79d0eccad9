"""Lengths: samples to frames, and masks over frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def conv_frames(samples: Tensor, kernels: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Frames that unpadded convolutions yield for so many samples; at least 0. Any integer shape."""
    frames = samples
    for kernel, stride in zip(kernels, strides, strict=True):
        frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
    return frames.clamp(min=0)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one output frame sees (400 for HuBERT's conv stack): the least input length."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a position is real: lengths (B,), result (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)
