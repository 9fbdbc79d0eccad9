"""A batch: utterances side by side, as teachers and student hear them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class CachedTargets:
    """What the prediction heads must predict for a batch, computed before the training.

    Attributes:
        rows: (N, D') the frames of one utterance after another, the targets of all heads side by side.
        frames: (B,) how many of the rows each utterance has, on the CPU.
    """

    rows: Tensor
    frames: Tensor


@dataclass(frozen=True)
class Batch:
    """Utterances as teachers and student hear them.

    Attributes:
        clean: (B, S) waveforms at 16 kHz, zero-padded.
        distorted: (B, S) what the student hears; the same tensor where nothing is distorted.
        lengths: (B,) samples, on the CPU.
        utterances: B names, for messages.
        starts: (B,) first sample of each within its whole utterance, where crops are taken; on the CPU.
        keys: (B,) the number that finds each in a cache of targets, where they have one; on the CPU.
        cached: targets that were computed before; None: the teachers compute them.
    """

    clean: Tensor
    distorted: Tensor
    lengths: Tensor
    utterances: tuple[str, ...]
    starts: Tensor | None = None
    keys: Tensor | None = None
    cached: CachedTargets | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Waveforms and targets on ``device``; lengths stay on the CPU, where they cost no synchronisation."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Waveforms and targets in memory that a GPU copies from without waiting."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With its large tensors changed, each once, so that one that stands in two places still does."""
        clean = change(self.clean)
        distorted = clean if self.distorted is self.clean else change(self.distorted)
        cached = None if self.cached is None else replace(self.cached, rows=change(self.cached.rows))
        return replace(self, clean=clean, distorted=distorted, cached=cached)


def collate(clean: Sequence[Tensor], distorted: Sequence[Tensor], names: Sequence[str]) -> Batch:
    """Zero-pad waveforms (S,) to a batch (B, S)."""
    padded = pad_sequence(list(clean), batch_first=True)
    same = all(a is b for a, b in zip(clean, distorted, strict=True))
    return Batch(
        clean=padded,
        distorted=padded if same else pad_sequence(list(distorted), batch_first=True),
        lengths=torch.tensor([waveform.numel() for waveform in clean]),
        utterances=tuple(names),
    )


def empty_batch() -> Batch:
    """A batch without utterances, for a process that has none left while others have: all make the same steps."""
    none, no_samples = torch.zeros(0, dtype=torch.long), torch.zeros(0, 0)
    return Batch(clean=no_samples, distorted=no_samples, lengths=none, utterances=(), starts=none)


@dataclass(frozen=True)
class Loaded:
    """A batch, and what happened while it was read."""

    batch: Batch
    read: int
    bad: tuple[tuple[str, str], ...]

    def pin_memory(self) -> Loaded:
        """Called by DataLoader where there is a GPU."""
        return replace(self, batch=self.batch.pin_memory())
