"""Random draws that depend on what they are for, not on when or where they are made."""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: int | str) -> torch.Generator:
    """A fresh CPU generator whose stream is determined by ``key`` alone, such as ``(seed, epoch, utterance)``.

    The same key gives the same stream in every process and on every machine, so that neither the number of workers
    nor the order of batches nor a resumed run changes a draw.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()  # the generator keeps 32 bits of its seed
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One draw from ``[low, high)``."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def integer(generator: torch.Generator, count: int) -> int:
    """One draw from ``0 .. count - 1``."""
    return int(torch.randint(count, (), generator=generator))
