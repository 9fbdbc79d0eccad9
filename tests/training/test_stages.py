"""Runs of several stages: what each takes over from the one before, and kills at, before and after the switch."""

from __future__ import annotations

import functools
import os
import shutil
import signal

import helpers_train as h
import pytest
from helpers_train import assert_same_run

import s3prl_ekd.training.run
from s3prl_ekd.cli import main
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import load_student_and_heads
from s3prl_ekd.training.checkpoints import step_files
from s3prl_ekd.training.run import EXIT_PREEMPTED

STAGES = [{"name": "first", "max_steps": 6}, {"name": "second", "max_steps": 7, "lr": 1e-3, "warmup": 0.5}]


def recipe(output, stages=STAGES, more=None, **trainer):
    return h.recipe(output, more={"stages": stages, **(more or {})}, **trainer)


def weights(folder):
    """Of student and heads, by name."""
    student, heads = load_student_and_heads(folder)
    return {f"student.{k}": v for k, v in student.state_dict().items()} | {
        f"heads.{k}": v for k, v in heads.state_dict().items()
    }


def assert_same_stages(output, reference, names=("first", "second")):
    for name in names:
        assert_same_run(output / name, reference / name)
    for student in (*(f"{name}/student" for name in names[:-1]), "student"):
        h.assert_equal(weights(output / student), weights(reference / student))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert h.finish(h.start(recipe(output, checkpoint_every=2))) == 0
    return output


def test_a_stage_goes_on_where_the_one_before_stopped(whole):
    first, second = (h.checkpoint(whole / name) for name in ("first", "second"))
    assert (first["EKD_Run"]["epoch"], first["EKD_Run"]["consumed"]) == (1, 1)
    assert (second["EKD_Run"]["epoch"], second["EKD_Run"]["consumed"]) == (2, 3)
    assert second["global_step"] == 7
    rates = h.logged(whole / "second", "train/lr")
    assert list(rates) == list(range(1, 8))
    assert rates[1] == pytest.approx(1e-3 / 4), "its own learning rate and warm-up"
    assert rates[4] == pytest.approx(1e-3)
    assert h.logged(whole / "second")[1] < h.logged(whole / "first")[1]
    h.assert_equal(weights(whole / "first" / "student"), dict(first["EKD_Student"]))
    h.assert_equal(weights(whole / "student"), dict(second["EKD_Student"]))
    assert not (whole / "second" / "student").exists()


def test_a_stage_that_learns_nothing_ends_with_what_it_started_with(tmp_path):
    """Weights and heads are taken over, and AdamW starts anew: with its old averages the weights would move on."""
    stages = [{"name": "first", "max_steps": 3}, {"name": "second", "max_steps": 1, "lr": 0.0}]
    assert h.run(recipe(tmp_path / "run", stages)) == 0
    h.assert_equal(weights(tmp_path / "run" / "first" / "student"), weights(tmp_path / "run" / "student"))


def test_learnt_weights_of_teachers_are_taken_over(tmp_path):
    """They are in no student's folder, but in the last checkpoint."""
    stages = [{"name": "first", "max_steps": 3}, {"name": "second", "max_steps": 1, "lr": 0.0}]
    teachers = [{"name": name, "transformers": "unused", "layers": [1, 2]} for name in ("a", "bb")]
    more = {"teachers": teachers, "objective": {"learnt_weights": {"floor": 0.1}}}
    assert h.run(recipe(tmp_path / "run", stages, more)) == 0
    first, second = (
        h.checkpoint(tmp_path / "run" / name)["state_dict"]["distiller.learnt_weights.logits"]
        for name in ("first", "second")
    )
    assert first.abs().min() > 1e-4
    assert first.tolist() == second.tolist()


def test_the_first_stage_is_a_run_of_its_own(whole, tmp_path):
    recipe_there = RunConfig.from_yaml(whole / "first" / "recipe.yaml")
    assert recipe_there.stages == ()
    assert RunConfig.from_yaml(whole / "recipe.yaml") == recipe(whole, checkpoint_every=2)
    assert h.run(h.recipe(tmp_path / "run", max_steps=6, checkpoint_every=2)) == 0
    assert h.logged(tmp_path / "run") == h.logged(whole / "first")
    h.assert_equal(weights(tmp_path / "run" / "student"), weights(whole / "first" / "student"))


def test_the_last_checkpoint_is_the_last_stages(whole, tmp_path):
    assert main(["export-checkpoint", str(whole), str(tmp_path / "student")]) == 0
    h.assert_equal(weights(tmp_path / "student"), weights(whole / "student"))


def test_an_earlier_stages_student_is_what_it_ended_with(whole, tmp_path, capsys):
    """Until a later stage has a checkpoint; its own are of the student before it was changed at the end."""
    output = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(output / "second" / "checkpoints")
    assert main(["export", str(output), str(tmp_path / "student")]) == 0
    assert f"the student of {output / 'first' / 'student'}\n" in capsys.readouterr().out
    h.assert_equal(weights(tmp_path / "student"), weights(whole / "first/student"))
    shutil.rmtree(output / "first" / "student")
    assert main(["export", str(output), str(tmp_path / "checkpoint")]) == 0
    assert f"the student of {output / 'first' / 'checkpoints'}" in capsys.readouterr().out


def test_a_runs_folder_is_no_students(whole):
    with pytest.raises(UserError, match=f"a run's folder, not a student's; .*: s3prl-ekd export {whole} STUDENT"):
        load_student_and_heads(whole)


def die_at_the_switch(*, after):
    """Kill the process when it saves the student of a stage."""
    save = s3prl_ekd.training.run.save_student

    def die(*args, **kwargs):
        if after:
            save(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    s3prl_ekd.training.run.save_student = die


@pytest.mark.parametrize("after", [False, True], ids=["before the student", "after the student"])
def test_killed_at_the_switch(after, whole, tmp_path):
    output = tmp_path / "run"
    config = recipe(output, checkpoint_every=2)
    assert h.finish(h.start(config, before=functools.partial(die_at_the_switch, after=after))) == -signal.SIGKILL
    assert (output / "first" / "student").exists() == after
    assert not (output / "second").exists()
    assert h.finish(h.start(config, resume=True)) == 0
    assert_same_stages(output, whole)


@pytest.mark.slow
def test_killed_in_every_stage(whole, tmp_path):
    """In the first; in the second before its first checkpoint, and after it."""
    output, fed = tmp_path / "run", tmp_path / "fed"
    for batches in (4, 6, 6):
        fed.unlink(missing_ok=True)
        process = h.start(recipe(output, checkpoint_every=2), resume=True, fed=str(fed))
        assert h.signal_after(process, fed, batches, signal.SIGKILL) == -signal.SIGKILL
    assert h.finish(h.start(recipe(output, checkpoint_every=2), resume=True)) == 0
    assert_same_stages(output, whole)


def signal_at_the_switch():
    """A scheduler asks the process to stop while it saves the student of a stage."""
    save = s3prl_ekd.training.run.save_student

    def stop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*args, **kwargs)

    s3prl_ekd.training.run.save_student = stop


def test_preempted_at_the_switch(whole, tmp_path):
    config = recipe(tmp_path / "run", checkpoint_every=2)
    assert h.finish(h.start(config, before=signal_at_the_switch)) == EXIT_PREEMPTED
    assert (tmp_path / "run" / "first" / "student").exists()
    assert h.finish(h.start(config, resume=True)) == 0
    assert_same_stages(tmp_path / "run", whole)


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Preempted in the second stage; or one of them killed at the switch."""
    stages, fed = [{"name": "first", "max_steps": 3}, {"name": "second", "max_steps": 4}], tmp_path / "fed"
    runs = {name: recipe(tmp_path / name, stages, devices=2, dev_every=100) for name in ("whole", "stopped", "killed")}
    assert [h.finish(one) for one in h.start_all(runs["whole"])] == [0, 0]
    one, other = h.start_all(runs["stopped"], fed=str(fed))
    assert h.signal_after(other, fed, 10, signal.SIGTERM) == EXIT_PREEMPTED
    assert h.finish(one) == EXIT_PREEMPTED
    assert step_files(tmp_path / "stopped" / "second" / "checkpoints")
    processes = h.start_all(runs["killed"], before=functools.partial(die_at_the_switch, after=False))
    assert h.finish(processes[0]) == -signal.SIGKILL
    processes[1].kill()
    processes[1].join()
    for name in ("stopped", "killed"):
        assert [h.finish(one) for one in h.start_all(runs[name], resume=True)] == [0, 0]
        assert_same_stages(tmp_path / name, tmp_path / "whole")


def test_another_recipe_is_refused(whole):
    with pytest.raises(UserError, match=r"second: holds a run already \(step-00000007.ckpt\); add --resume"):
        h.run(recipe(whole))
    for changed in (h.recipe(whole), recipe(whole, STAGES[:1]), recipe(whole, [STAGES[0], {**STAGES[1], "lr": 1e-4}])):
        with pytest.raises(UserError, match=r"cannot resume: the checkpoint's recipe differs \(stages"):
            h.run(changed, resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        h.run(h.recipe(whole))
    assert RunConfig.from_yaml(whole / "recipe.yaml") == recipe(whole, checkpoint_every=2)


def test_the_last_stage_can_be_longer(whole, tmp_path):
    """Its learning rate is then that of the longer stage; the first is not trained again."""
    output, short = tmp_path / "run", [STAGES[0], {**STAGES[1], "max_steps": 4}]
    assert h.run(recipe(output, short, checkpoint_every=2)) == 0
    before = weights(output / "student")
    assert h.run(recipe(output, checkpoint_every=2), resume=True) == 0
    assert list(h.logged(output / "second")) == list(range(1, 8))
    h.assert_equal(weights(output / "first" / "student"), weights(whole / "first" / "student"))
    assert any((tensor != before[name]).any() for name, tensor in weights(output / "student").items())


def test_a_damaged_last_checkpoint(tmp_path):
    """The next stage cannot go on from the one before, and says how to make it again."""
    output, stages = tmp_path / "run", [{"name": "first", "max_steps": 4}, {"name": "second", "max_steps": 1}]
    config = recipe(output, stages, checkpoint_every=2, dev_every=100)
    assert h.finish(h.start(config, before=functools.partial(die_at_the_switch, after=True))) == -signal.SIGKILL
    (output / "first" / "checkpoints" / "step-00000004.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"last checkpoint \(step 4\) is damaged or gone.*; delete .*first/student"):
        h.run(config, resume=True)
    shutil.rmtree(output / "first" / "student")
    assert h.run(config, resume=True) == 0
    assert sorted(h.logged(output / "first")) == [1, 2, 3, 4]
