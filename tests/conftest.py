"""What every test has: a seed, a tiny student, four utterances; and the order in which files are run."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network

import pytest
import torch
from helpers_models import TINY, speech_like
from helpers_order import longest_first
from torch import Tensor

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.model import Student


def pytest_collection_modifyitems(items):
    longest_first(items)


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


@pytest.fixture
def utterances() -> list[Tensor]:
    """Four utterances of very different lengths."""
    return [speech_like(n, seed) for seed, n in enumerate((16000, 7234, 12801, 3000))]


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """The smallest mini corpus, to be read only."""
    from s3prl_ekd.mini_corpus.build import build
    from s3prl_ekd.mini_corpus.config import MiniCorpusConfig

    return build(tmp_path_factory.mktemp("corpus") / "mini", MiniCorpusConfig.tiny())
