"""Utterances side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.distiller import Batch


def collate(clean: Sequence[torch.Tensor], distorted: Sequence[torch.Tensor], names: Sequence[str]) -> Batch:
    """Zero-pad waveforms (S,) to a batch (B, S)."""
    padded = pad_sequence(list(clean), batch_first=True)
    same = all(a is b for a, b in zip(clean, distorted, strict=True))
    return Batch(
        clean=padded,
        distorted=padded if same else pad_sequence(list(distorted), batch_first=True),
        lengths=torch.tensor([waveform.numel() for waveform in clean]),
        utterances=tuple(names),
    )
