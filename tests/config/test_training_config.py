"""The recipe of a run: its parts, overrides, and which recipes a run may go on with."""

from __future__ import annotations

import dataclasses

import helpers_train as h
import pytest

from s3prl_ekd.config.base import apply_override
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.config.training import check_resumable
from s3prl_ekd.errors import UserError


def test_precision_32_needs_no_quotes(tmp_path):
    config = h.recipe(tmp_path, precision=32)
    assert config.trainer.precision == "32"


def test_recipe_splits_into_model_and_training(tmp_path):
    config = h.recipe(tmp_path)
    assert type(config.distill) is DistillConfig
    assert config.distill.teachers == config.teachers


def test_override_makes_missing_sections():
    mapping = {"trainer": None}
    apply_override(mapping, "trainer.devices=2")
    apply_override(mapping, "schedule.decay=cosine")
    assert mapping == {"trainer": {"devices": 2}, "schedule": {"decay": "cosine"}}


def test_what_a_resumed_run_may_change():
    saved = h.recipe("elsewhere", log_every=7, strategy="ddp", data={"num_workers": 0}).to_mapping()
    check_resumable(saved, h.recipe("here"))
    check_resumable(saved, h.recipe("here", max_steps=13))
    with pytest.raises(UserError, match=r"trainer\.max_steps: 12 there, 11 here"):
        check_resumable(saved, h.recipe("here", max_steps=11))
    with pytest.raises(UserError, match=r"trainer.accumulate: 1 there, 2 here; seed: 0 there, 7 here"):
        check_resumable(saved, dataclasses.replace(h.recipe("here", accumulate=2), seed=7))
