"""Runs without usable recordings: they end soon, in all processes, with one line."""

from __future__ import annotations

import re

import helpers_train as h
import pytest

from s3prl_ekd.errors import UserError
from s3prl_ekd.training.checkpoints import step_files

NOTHING = {(epoch, index): "empty" for epoch in range(99) for index in range(6)}


@pytest.mark.parametrize("devices", [1, 2])
def test_nothing_to_train_on_ends_the_run(devices, tmp_path):
    """Soon, in all processes, with one line; nothing is left, and no student."""
    settings = {"odd": NOTHING, "batches": 6}
    if devices == 2:
        assert h.two_processes(tmp_path / "run", **settings) == [2, 2]
        message = (tmp_path / "run.error").read_text()
        (tmp_path / "run.error").unlink()
    else:
        with pytest.raises(UserError) as error:
            h.run(h.recipe(tmp_path / "run"), **settings)
        message = str(error.value)
    assert message == "not one usable recording in 20 steps in a row; see whether their storage is still there"
    assert list(tmp_path.iterdir()) == []


def test_storage_that_goes_ends_the_run_with_a_checkpoint(tmp_path):
    odd = {key: "empty" for key in NOTHING if key[0] > 0}
    with pytest.raises(UserError, match=r"20 steps in a row; .*step-00000005\.ckpt holds the weights so far"):
        h.run(h.recipe(tmp_path / "run", checkpoint_every=100), odd=odd)
    assert h.checkpoint(tmp_path / "run")["EKD_Run"]["consumed"] == 5, "the recordings may come back"
    assert h.run(h.recipe(tmp_path / "run", checkpoint_every=100), resume=True) == 0
    assert len(h.logged(tmp_path / "run")) == 12


def test_no_student_without_a_step_that_learnt(tmp_path):
    odd = dict.fromkeys(NOTHING, "nan")
    with pytest.raises(UserError, match=r"no step has learnt anything, .* not finite in all 3; no student"):
        h.run(h.recipe(tmp_path / "run", max_steps=3), odd=odd)
    assert not (tmp_path / "run" / "student").exists()


def test_no_dev_recordings_end_the_run(tmp_path):
    """A dev loss of nothing would be no result."""
    with pytest.raises(UserError, match=r"data\.dev_cuts: not one usable recording; .*step-00000004.ckpt holds"):
        h.run(h.recipe(tmp_path / "run"), odd={(99, index): "empty" for index in range(4)})


def test_too_many_bad_recordings_stop_all_processes(tmp_path):
    """One process has read them, all end with a line and one checkpoint; it is their sum that is too much."""
    assert h.two_processes(tmp_path / "run", bad=1, batches=40, max_steps=20) == [2, 2]
    message = (tmp_path / "run.error").read_text()
    # After 4 steps 5 batches of 20 are read by each, since Lightning reads ahead; with the next step all know it.
    assert re.match(r"5 of 200 recordings read cannot be used; .*step-00000005.ckpt holds the weights so far", message)
    assert step_files(tmp_path / "run" / "checkpoints")[-1].name == "step-00000005.ckpt"
    assert h.checkpoint(tmp_path / "run")["EKD_Run"]["consumed"] == 5


def test_too_many_bad_recordings_of_one_process_cost_no_step(tmp_path):
    """It notices while it reads ahead: the steps so far are saved."""
    config = h.recipe(tmp_path / "run", checkpoint_every=100, max_steps=40)
    with pytest.raises(
        UserError, match=r"10 of 200 recordings read .*; .*step-00000008\.ckpt holds the weights so far"
    ):
        h.run(config, bad=1, batches=40)
    assert h.checkpoint(tmp_path / "run")["EKD_Run"]["consumed"] == 8
