"""A tiny student, a teacher that is none, synthetic speech and batches of it; where the checkout is."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.audio.batch import Batch
from s3prl_ekd.network.frames import HiddenStates, Packing

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"

TINY = {
    "conv_dim": [16] * 7,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def speech_like(samples: int, seed: int = 0) -> Tensor:
    """A voiced, pulsed wave with noise, amplitude about 0.1: (samples,)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    pitch = 100 + 100 * torch.rand((), generator=generator)
    harmonics = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 8))
    envelope = 0.55 + 0.45 * torch.sin(2 * torch.pi * 3 * time + 6 * torch.rand((), generator=generator))
    return 0.05 * harmonics * envelope + 0.005 * torch.randn(samples, generator=generator)


class FakeTeacher:
    """Hidden state i of an utterance is a fixed random projection of its frames' samples."""

    weight = 1.0

    def __init__(self, name="fake", layers=(1, 2), size=24, surplus=0, padded=False):
        self.padded = padded
        self.name, self.layers, self.hidden_size, self.surplus = name, layers, size, surplus
        generator = torch.Generator().manual_seed(len(name))
        self.projections = [torch.randn(320, size, generator=generator) for _ in layers]
        self.heard = None

    def hidden_states(self, waveforms, lengths):
        self.heard = waveforms
        frames = (lengths - 400) // 320 + 1 + self.surplus
        size = (waveforms.shape[1] - 400) // 320 + 1 + self.surplus
        cut = F.pad(waveforms, (0, 960))[:, : size * 320].unflatten(1, (size, 320))
        packing = Packing(torch.full_like(frames, size) if self.padded else frames, waveforms.device, size)
        return HiddenStates(tuple(packing.pack((cut @ one).tanh()) for one in self.projections), packing)


def batch_of(*utterances, distorted=None):
    clean = pad_sequence(list(utterances), batch_first=True)
    lengths = torch.tensor([len(u) for u in utterances])
    names = tuple(f"u{i}" for i in range(len(lengths)))
    return Batch(clean, clean if distorted is None else distorted, lengths, names)
