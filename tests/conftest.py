"""What every test has: a seed, a tiny student, four utterances; and the order in which files are run."""

from __future__ import annotations

import collections
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network

import pytest
import torch
from helpers_models import TESTS, TINY, speech_like
from torch import Tensor

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.model import Student

# The files that take longest, the longest first. pytest-xdist's workers take them in this order (`make test` says
# --no-loadscope-reorder), so that none is left with a long one when the others have nothing more to do.
LONGEST = (
    "shipped/test_documents.py",
    "superb/test_demo.py",
    "superb/test_jobs.py",
    "superb/test_command.py",
    "s3prl_plugin/test_pretrain_road.py",
    "s3prl_plugin/test_plug.py",
    "shipped/test_wheel.py",
    "shipped/test_shipped_recipes.py",
    "shipped/test_contributing.py",
    "superb/test_real_corpora.py",
    "s3prl_compat/test_new_processes.py",
    "training/test_resume.py",
    "training/test_run.py",
    "target_cache/test_cache_targets.py",
    "test_fuzz.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first, the others by how many tests they have."""
    place = {TESTS / name: number for number, name in enumerate(LONGEST)}
    size = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (place.get(item.path, len(LONGEST)), -size[item.path], str(item.path)))


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
