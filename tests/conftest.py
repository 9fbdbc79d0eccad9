"""Tiny models and synthetic speech that several tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network

import pytest
import torch
from torch import Tensor

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.model import Student

TINY = {
    "conv_dim": [16] * 7,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> StudentConfig:
    """A student of 40 k parameters."""
    return StudentConfig.from_mapping(TINY)


@pytest.fixture
def tiny_student(tiny_config) -> Student:
    """In eval mode."""
    return Student(tiny_config).eval()


def speech_like(samples: int, seed: int = 0) -> Tensor:
    """A voiced, pulsed wave with noise, amplitude about 0.1: (samples,)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16000
    pitch = 100 + 100 * torch.rand((), generator=generator)
    harmonics = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 8))
    envelope = 0.55 + 0.45 * torch.sin(2 * torch.pi * 3 * time + 6 * torch.rand((), generator=generator))
    return 0.05 * harmonics * envelope + 0.005 * torch.randn(samples, generator=generator)


@pytest.fixture
def utterances() -> list[Tensor]:
    """Four utterances of very different lengths."""
    return [speech_like(n, seed) for seed, n in enumerate((16000, 7234, 12801, 3000))]
