"""Examples in docstrings run."""

from __future__ import annotations

import doctest

import pytest
import torch

from s3prl_ekd import assets, distiller, teachers, upstream
from s3prl_ekd.audio.batch import collate
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.student import folder

NAMES = {"assets": assets, "torch": torch, "collate": collate, "DistillConfig": DistillConfig}


@pytest.mark.parametrize("module", [folder, upstream, teachers, distiller], ids=lambda module: module.__name__)
def test_examples(module):
    found = doctest.testmod(module, extraglobs={**NAMES, "load_teachers": teachers.load_teachers})
    assert found.attempted >= 2
    assert found.failed == 0
