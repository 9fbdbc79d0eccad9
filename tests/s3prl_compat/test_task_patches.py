"""Faults in the data sets of s3prl's downstream tasks, mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_ekd import assets
from s3prl_ekd.s3prl_compat import task_patches
from s3prl_ekd.s3prl_plugin import hub
from s3prl_ekd.tasks import TASKS


@pytest.fixture(autouse=True)
def s3prl_tasks():
    hub.register()
    task_patches.apply()


def test_each_voxceleb1_has_its_own_files_and_nothing_is_cached(tiny_corpus, tmp_path, monkeypatch):
    from s3prl.downstream.voxceleb1 import dataset

    cache = tmp_path / "site-packages"
    cache.write_text("no folder: whoever writes below it fails")
    monkeypatch.setattr(dataset, "CACHE_PATH", str(cache / ".cache"))
    for name in ("VoxCeleb1", "VoxCeleb1-hidden"):
        root = tiny_corpus / name
        files = dataset.SpeakerClassifiDataset("test", root, str(root / "iden_split.txt")).dataset
        assert len(files) == 12
        assert all(Path(file).is_relative_to(root) for file in files)
    assert str(cache / ".cache") == dataset.CACHE_PATH


def test_every_ctc_loader_has_the_workers_of_the_configuration(tiny_corpus):
    from s3prl.downstream.ctc import expert
    from s3prl.downstream.ctc.text import load_text_encoder

    settings = TASKS["pr"].template("mini")["downstream_expert"]["corpus"]
    settings |= {"path": str(tiny_corpus / "LibriSpeech"), "lexicon": [str(tiny_corpus / "lexicon.txt")]}
    tokenizer = load_text_encoder("word", str(assets.folder("vocab/phoneme.txt")))
    assert [expert.load_dataset("dev", tokenizer, settings).num_workers for _ in range(2)] == [0, 0]
    assert settings["num_workers"] == 0
