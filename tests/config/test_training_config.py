"""The recipe of a run: its parts, overrides, and which recipes a run may go on with."""

from __future__ import annotations

import dataclasses

import helpers_train as h
import pytest

from s3prl_ekd.config.base import apply_override
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.config.training import RunConfig, check_resumable
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


PRUNING = {"budget": {"sparsity": 0.4}, "warmup_steps": 3}
STAGES = [{"name": "prune", "max_steps": 6, "lr": 1e-4}, {"name": "recover", "max_steps": 7, "warmup": 0.5}]


def staged(*stages, pruning=None, output="here", **trainer):
    return h.recipe(output, more={"stages": stages, "pruning": pruning}, **trainer)


def test_a_stage_as_a_run_of_its_own():
    config = staged(*STAGES, pruning=PRUNING)
    first, second = config.of_stage(0), config.of_stage(1)
    assert RunConfig.from_mapping(first.to_mapping()) == first
    assert [part.trainer.max_steps for part in (first, second)] == [6, 7]
    assert [part.optimizer.lr for part in (first, second)] == [1e-4, config.optimizer.lr]
    assert [part.schedule.warmup for part in (first, second)] == [config.schedule.warmup, 0.5]
    assert [part.pruning for part in (first, second)] == [config.pruning, None]
    assert [part.output for part in (first, second)] == ["here/prune", "here/recover"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "A"), "stages: names must be unique, upper case or lower, since they are folders; found a, A$"),
        (("a", "a"), "found a, a$"),
        (("Student",), r"stages\[0\]\.name: 'Student' cannot be a folder of the run"),
    ],
)
def test_names_that_are_one_folder_on_some_disks(names, message):
    with pytest.raises(UserError, match=message):
        staged(*({"name": name, "max_steps": 3} for name in names))


@pytest.mark.parametrize("rate", [0, 1e-50, 1])
def test_gates_that_could_not_learn(rate):
    """Their parameters would start at infinity."""
    with pytest.raises(UserError, match=r"pruning\.initial_drop: expected at (least 0.0001|most 0.9999), found"):
        staged(pruning=PRUNING | {"initial_drop": rate})
    assert staged(pruning=PRUNING | {"initial_drop": 0.5}).pruning.initial_drop == 0.5


def test_only_the_last_stage_may_be_longer():
    saved = staged(*STAGES).to_mapping()
    check_resumable(saved, staged(STAGES[0], STAGES[1] | {"max_steps": 9}, max_steps=5))
    with pytest.raises(UserError, match=r"stages\[0\]\.max_steps: 6 there, 7 here"):
        check_resumable(saved, staged(STAGES[0] | {"max_steps": 7}, STAGES[1]))
    with pytest.raises(UserError, match=r"stages\[1\]\.max_steps: 7 there, 6 here"):
        check_resumable(saved, staged(STAGES[0], STAGES[1] | {"max_steps": 6}))
    with pytest.raises(UserError, match=r"stages: \[{.*}\] there, \[\] here"):
        check_resumable(saved, h.recipe("here"))


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({"budget": {"parameters": 10}}, r"pruning\.budget\.parameters: 10 cannot be reached .*; the least is \d+"),
        ({"budget": {"sparsity": 0.999}}, r"pruning\.budget\.sparsity: 0\.999 cannot .*; the most is 0\.9\d+"),
        ({"budget": {"multiply_adds": 1e12}}, "leaves nothing to prune"),
        ({"budget": {"sparsity": 0.4, "parameters": 1e4}}, "give exactly one of parameters, sparsity, multiply_adds"),
        ({"warmup_steps": 6}, r"pruning\.warmup_steps: 6 steps until the budget is asked for, in a stage of 6"),
    ],
)
def test_pruning_that_cannot_be(pruning, message):
    with pytest.raises(UserError, match=message):
        staged(*STAGES, pruning=PRUNING | pruning)


def test_the_size_of_the_student_in_words():
    assert staged(pruning=PRUNING).student_size() == (
        "the student has 16.83 k parameters, 5.877 M multiply-adds a second; pruned to 10.1 k parameters"
    )
    assert h.recipe("here").student_size() == "the student has 16.83 k parameters, 5.877 M multiply-adds a second"
    copied = h.recipe("here", more={"student": {"copy": "fake"}, "pruning": PRUNING}).student_size()
    assert copied.endswith("of 'fake', which are known when that is loaded; pruned to 60 % of its parameters")
