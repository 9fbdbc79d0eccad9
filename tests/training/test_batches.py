"""Batches know the position after them, and reading them consumes no random numbers."""

from __future__ import annotations

import contextlib
import itertools
import random

import helpers_train as h
import numpy as np
import pytest
import torch

from s3prl_ekd.errors import UserError
from s3prl_ekd.training import random_state
from s3prl_ekd.training.batches import EndlessBatches, Position


def test_batches_know_the_position_after_them(tmp_path):
    stream = h.SyntheticStream(h.recipe(tmp_path), batches=3)
    whole = list(itertools.islice(EndlessBatches(stream, Position()), 8))
    assert [placed.after for placed in whole[:4]] == [Position(0, 1), Position(0, 2), Position(0, 3), Position(1, 1)]
    for start in (2, 3, 4):
        again = list(itertools.islice(EndlessBatches(stream, whole[start - 1].after), 3))
        assert [p.batch.utterances for p in again] == [p.batch.utterances for p in whole[start : start + 3]]
    state = torch.get_rng_state()
    next(iter(EndlessBatches(stream, Position())))
    assert torch.equal(torch.get_rng_state(), state), "the stream draws from torch's generator, which must not show"
    with pytest.raises(UserError, match="not one batch"):
        next(iter(EndlessBatches(h.SyntheticStream(h.recipe(tmp_path), batches=0), Position())))


def test_random_states_come_back(tmp_path):
    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]

    draw()  # leaves half a pair of normal numbers behind
    torch.save(random_state.capture(), tmp_path / "states.pt")
    first = draw()
    random_state.restore(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draw() == first
    random_state.restore(torch.load(tmp_path / "states.pt", weights_only=True))
    with contextlib.suppress(KeyError), random_state.preserved():
        draw()
        raise KeyError("what fails is taken back too")
    assert draw() == first
