"""What the tests of the evaluation share: the tiny mini corpus, a student, s3prl made ready."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_s3prl import write_student

from s3prl_ekd.s3prl_plugin import hub


@pytest.fixture(scope="session")
def corpus(tiny_corpus) -> Path:
    return tiny_corpus


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    return write_student(tmp_path_factory.mktemp("student") / "tiny")


@pytest.fixture
def s3prl_tasks():
    from s3prl_ekd.s3prl_compat import task_patches

    hub.register()
    task_patches.apply()
