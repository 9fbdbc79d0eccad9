"""A batch: utterances side by side, as the two sides hear them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Batch:
    """Utterances as the two sides hear them.

    Attributes:
        clean: (B, S) waveforms at 16 kHz, zero-padded.
        distorted: (B, S) what the student hears; the same tensor where nothing is distorted.
        lengths: (B,) samples, on the CPU.
        utterances: B names, for messages.
        starts: (B,) first sample of each within its whole utterance, where crops are taken; on the CPU.
        targets: (N, D') what the heads must predict, if it was computed before: the frames of one utterance after
            another, all heads side by side; None: the teachers compute it.
        target_frames: (B,) how many frames of ``targets`` each utterance has, on the CPU.
    """

    clean: Tensor
    distorted: Tensor
    lengths: Tensor
    utterances: tuple[str, ...]
    starts: Tensor | None = None
    targets: Tensor | None = None
    target_frames: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The waveforms on ``device``, each moved once; lengths stay on the CPU, where they cost no synchronisation."""
        clean = self.clean.to(device, non_blocking=True)
        distorted = clean if self.distorted is self.clean else self.distorted.to(device, non_blocking=True)
        targets = self.targets.to(device, non_blocking=True) if self.targets is not None else None
        return replace(self, clean=clean, distorted=distorted, targets=targets)


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
    """A batch of no utterance: its rank still steps with the others."""
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
        batch = self.batch
        clean = batch.clean.pin_memory()
        distorted = clean if batch.distorted is batch.clean else batch.distorted.pin_memory()
        targets = batch.targets.pin_memory() if batch.targets is not None else None
        batch = replace(batch, clean=clean, distorted=distorted, targets=targets)
        return replace(self, batch=batch)
