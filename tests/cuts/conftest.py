"""A small corpus, written once."""

from __future__ import annotations

import pytest
from helpers_cuts import manifest, write
from helpers_models import speech_like

from s3prl_ekd.cuts.manifests import write_shar


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """61 recordings of 0.1 to 1.9 s (``speech``), their manifest, a second one, and a Shar folder of both."""
    root = tmp_path_factory.mktemp("corpus")
    for i in range(61):
        write(root / "speech" / f"{i % 4}/{i}.flac", speech_like(1600 + 479 * (i * 23 % 61), seed=i))
    for i in range(9):
        write(root / "more" / f"more{i}.wav", speech_like(8000 + 1000 * i, seed=100 + i))
    manifest(root / "speech", root / "speech.jsonl.gz")
    manifest(root / "more", root / "more.jsonl.gz")
    write_shar([str(root / "speech.jsonl.gz")], root / "shar", shard_size=10)
    return root
