"""What the tests of the runners work on."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_s3prl import write_corpus, write_phone_recognition, write_recipe, write_student


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Corpus, downstream configuration, student, pretraining recipe; to be read only."""
    root = tmp_path_factory.mktemp("place")
    write_corpus(root / "corpus")
    write_phone_recognition(root, root / "corpus")
    write_student(root / "student")
    write_recipe(root, root / "corpus" / "train")
    return root


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
