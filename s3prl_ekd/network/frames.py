"""Lengths: samples to frames, masks over frames, and the two ways in which a batch's frames are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def positions(counts: Tensor, starts: Tensor) -> Tensor:
    """``counts`` (B,) consecutive numbers from each of ``starts`` (B,) on, one run after the other: (N,)."""
    return torch.arange(int(counts.sum())) + (starts - (counts.cumsum(0) - counts)).repeat_interleave(counts)


class Packing:
    """Utterances' real frames as consecutive rows: (B, F, ...) zero-padded to (N, ...) and back.

    Attributes:
        frames: (B,) real frames of each utterance, on the CPU.
        size: F, the most frames that any has.
        rows: N, the sum.
        dense: whether there is no padding at all.
    """

    def __init__(self, frames: Tensor, device: torch.device, size: int | None = None) -> None:
        """``size``: F, if not the maximum of ``frames``."""
        self.frames = frames
        self.size = int(frames.max()) if size is None else size
        self.rows = int(frames.sum())
        self.dense = self.rows == len(frames) * self.size
        self._device = device
        self._index: Tensor | None = None
        if not self.dense:
            index = positions(frames, torch.arange(len(frames)) * self.size)
            self._index = index.to(device, non_blocking=True)

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

    def first(self, rows: Tensor, frames: Tensor) -> Tensor:
        """Of rows (N, ...) those of each utterance's first ``frames`` (B,); the same tensor where these are all."""
        if torch.equal(frames, self.frames):
            return rows
        index = positions(frames, self.frames.cumsum(0) - self.frames)
        return rows.index_select(0, index.to(rows.device, non_blocking=True))


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of a batch, of a student or a teacher.

    Attributes:
        rows: one (N, D) for each layer: the real frames of one utterance after another.
        packing: how the rows make up utterances.
        layer_input: (N, D), the input of a student's first transformer layer, which its hidden state 0 is not.
    """

    rows: tuple[Tensor, ...]
    packing: Packing
    layer_input: Tensor | None = None

    @property
    def tapped(self) -> tuple[Tensor, ...]:
        """The rows as prediction heads count them, which is as a teacher's: 0 is the input of the first layer."""
        return self.rows if self.layer_input is None else (self.layer_input, *self.rows[1:])

    @property
    def hidden_states(self) -> tuple[Tensor, ...]:
        """The rows as (B, F, D), zero past each utterance's end."""
        return tuple(self.packing.unpack(rows) for rows in self.rows)

    @property
    def frame_lengths(self) -> Tensor:
        """(B,) real frames of each utterance, on the CPU."""
        return self.packing.frames

    def first(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The rows of each utterance's first ``frames`` (B,)."""
        return tuple(self.packing.first(rows, frames) for rows in self.rows)


class Padded:
    """The batch as it is, with Packing's interface: a "row" is (B, F, ...) and the padding is computed.

    No shape depends on a length's value, as in a recorded graph none may. ``frames`` are on the batch's device, and
    ``size`` includes padding.
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
        if self.dense:
            return rows
        return rows.masked_fill(~self._mask.view(*rows.shape[:2], *[1] * (rows.dim() - 2)), 0.0)

    def mask(self) -> Tensor:
        return self._mask


Layout = Packing | Padded
