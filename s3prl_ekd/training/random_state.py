"""Every random generator that training can draw from, as tensors that a checkpoint holds without pickled objects."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

States = dict[str, Tensor]


def capture() -> States:
    """The states of Python's, numpy's, torch's and (where there is one) the current CUDA device's generator."""
    version, words, gauss = random.getstate()
    assert version == 3, f"random.getstate() has version {version}"
    numpy = np.random.get_state(legacy=False)
    assert numpy["bit_generator"] == "MT19937", f"numpy's global generator is a {numpy['bit_generator']}"
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8)
    return {
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy_position": torch.tensor([numpy["state"]["pos"], numpy["has_gauss"]]),
        "numpy_gauss": torch.tensor([numpy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore(states: States) -> None:
    """The inverse of :func:`capture`; a CUDA state is ignored where there is no CUDA device, and the reverse."""
    gauss = states["python_gauss"].item()
    random.setstate((3, tuple(states["python"].tolist()), None if gauss != gauss else gauss))
    keys = states["numpy"].numpy().astype(np.uint32)
    position, has_gauss = states["numpy_position"].tolist()
    np.random.set_state(("MT19937", keys, position, has_gauss, states["numpy_gauss"].item()))
    torch.set_rng_state(states["torch"].clone())  # torch 2.14 crashes on a slice of a larger tensor
    if torch.cuda.is_available() and states["cuda"].numel():
        torch.cuda.set_rng_state(states["cuda"].clone())


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Whatever the block draws from the CPU's generators, they are afterwards as they were, also if it fails.

    Loading data may draw (a DataLoader does when it starts), and does so earlier or later in a resumed run. Lightning's
    ``isolate_rng`` restores nothing if the block raises, as it does where a signal ends the wait for a batch: the
    checkpoint saved then would hold other states than the uninterrupted run had.
    """
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
