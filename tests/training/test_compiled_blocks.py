"""Blocks of a student whose layers differ are compiled, all of them."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers_models import TINY, speech_like
from torch import nn
from torch._dynamo.utils import counters

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.model import Student
from s3prl_ekd.training.module import compile_blocks


@pytest.mark.slow
def test_every_size_of_block_is_compiled(monkeypatch):
    """Torch's limit is 8 for the same code; what lies beyond would stay as it is, with a warning."""
    config = StudentConfig(**TINY | {"num_hidden_layers": 10, "intermediate_size": tuple(range(11, 21))})
    student = Student(config).eval()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", 8)
    with torch.no_grad():
        plain = student(speech_like(8000)[None]).rows[-1]
        counters.clear()
        compile_blocks(student)
        compiled = student(speech_like(8000)[None]).rows[-1]
    assert counters["stats"]["unique_graphs"] == 10
    torch.testing.assert_close(compiled, plain)
