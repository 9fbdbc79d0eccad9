"""Keyword spotting: what is wrong with the folders given is said before s3prl reads them."""

from __future__ import annotations

import shutil

import pytest
from helpers_corpora import speech_commands

from s3prl_ekd.errors import UserError
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.corpora import Corpora, Split


def test_folders_are_checked_before_s3prl_reads_them(tmp_path):
    root = speech_commands(tmp_path, speakers=1)
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"

    def planned(train, test):
        corpora = Corpora(recipes="real", given={"speech_commands": train, "speech_commands_test": test})
        return TASKS["ks"].experiments(corpora, frozenset({Split.PUBLIC}), TASKS["ks"].template("real"), tmp_path)

    assert [test.name for one in planned(train, test) for test in one.tests] == ["test"]
    with pytest.raises(UserError, match=r"--speech-commands-test .*: no \*\.wav in _unknown_, _silence_; it must be"):
        planned(train, train)
    shutil.copytree(train / "bed", test / "bed")
    with pytest.raises(UserError, match=r"--speech-commands-test .*: a test set has no folder bed, only yes, no, up"):
        planned(train, test)
    shutil.rmtree(train / "_background_noise_")
    with pytest.raises(UserError, match=r"no \*\.wav in _background_noise_; it must be speech_commands_v0\.01"):
        planned(train, test)
