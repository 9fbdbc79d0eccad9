"""Lengths: samples to frames, masks over frames, and the two ways in which a batch's frames are laid out."""

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


def whole_lengths(padded: Tensor) -> Tensor:
    """(B,) lengths of a batch (B, T, ...) without padding, on the CPU."""
    return torch.full((padded.shape[0],), padded.shape[1])


class Packing:
    """Utterances' real frames as consecutive rows: (B, F, ...) zero-padded to (N, ...) and back.

    Attributes:
        frames: (B,) real frames of each utterance, on the CPU.
        size: F, the most frames that any has.
        rows: N, the sum.
    """

    def __init__(self, frames: Tensor, device: torch.device, size: int | None = None) -> None:
        """``size``: F, if not the maximum of ``frames``."""
        self.frames = frames
        self.size = int(frames.max()) if size is None else size
        self.rows = int(frames.sum())
        self._device = device
        self._index: Tensor | None = None
        if self.rows < len(frames) * self.size:
            starts = torch.arange(len(frames)) * self.size - (frames.cumsum(0) - frames)  # padded minus packed position
            index = torch.arange(self.rows) + starts.repeat_interleave(frames)
            self._index = index.to(device, non_blocking=True)

    @property
    def dense(self) -> bool:
        """Whether there is no padding at all."""
        return self._index is None

    def pack(self, padded: Tensor) -> Tensor:
        """(B, F, ...) to (N, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self._index is None else flat.index_select(0, self._index)

    def unpack(self, rows: Tensor) -> Tensor:
        """(N, ...) to (B, F, ...), zero past each utterance's frames."""
        if self._index is not None:
            flat = rows.new_zeros(len(self.frames) * self.size, *rows.shape[1:])
            rows = flat.index_copy(0, self._index, rows)
        return rows.unflatten(0, (len(self.frames), self.size))

    def mask(self) -> Tensor:
        """(B, F), True at real frames."""
        return length_mask(self.frames.to(self._device, non_blocking=True), self.size)


class Padded:
    """The batch as it is, with Packing's interface: a "row" is (B, F, ...) and the padding is computed.

    No shape depends on a length's value, as in a recorded graph none may.

    Attributes:
        frames: (B,) real frames of each utterance, on the batch's device.
        size: F, padding included.
        dense: whether there is no padding at all.
    """

    def __init__(self, padded: Tensor, frames: Tensor | None) -> None:
        """``padded`` (B, F, ...), and ``frames`` (B,) real ones on its device; None: all F."""
        self.size = padded.shape[1]
        self.frames = whole_lengths(padded).to(padded.device) if frames is None else frames
        self.dense = frames is None
        self._mask = length_mask(self.frames, self.size)

    def pack(self, padded: Tensor) -> Tensor:
        """As it is; contiguous, as Packing's, lest the graph depend on how F is laid out."""
        return padded.contiguous()

    def unpack(self, rows: Tensor) -> Tensor:
        """(B, F, ...), zero past each utterance's frames."""
        if self.dense:
            return rows
        return rows.masked_fill(~self._mask.view(*rows.shape[:2], *[1] * (rows.dim() - 2)), 0.0)

    def mask(self) -> Tensor:
        """(B, F), True at real frames."""
        return self._mask


Layout = Packing | Padded
