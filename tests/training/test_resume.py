"""Runs that are killed, stopped, or run out of disk, and go on bit for bit where they were: real processes."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from pathlib import Path

import helpers_train as h
import pytest
import torch
from helpers_train import assert_same_run

from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.training import batches
from s3prl_ekd.training.checkpoints import newest_readable, step_files
from s3prl_ekd.training.run import EXIT_PREEMPTED

# Two epochs and a half; dropout, dev losses, a log and a checkpoint that do not fall together.
PLAIN = {"checkpoint_every": 1}
UNEVEN = {"checkpoint_every": 3, "log_every": 2, "accumulate": 2}
SCALED = {"checkpoint_every": 2, "precision": "fp16"}


@functools.cache
def uninterrupted(folder, **settings):
    output = folder / "-".join(map(str, settings.values()))
    assert h.finish(h.start(h.recipe(output, **settings))) == 0
    return output


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of an uninterrupted run with these settings."""
    return functools.partial(uninterrupted, tmp_path_factory.mktemp("reference"))


def interrupted(output, settings, kills, number=signal.SIGKILL):
    """Start and resume a run that gets a signal after so many batches each time; exit statuses."""
    statuses, fed = [], output.parent / "fed"
    for count in kills:
        fed.unlink(missing_ok=True)
        process = h.start(h.recipe(output, **settings), resume=True, fed=str(fed))
        statuses.append(h.signal_after(process, fed, count, number))
    statuses.append(h.finish(h.start(h.recipe(output, **settings), resume=True)))
    return statuses


@pytest.mark.parametrize("settings", [PLAIN, UNEVEN, SCALED], ids=["plain", "uneven", "scaled"])
def test_killed_at_random_steps(settings, reference, tmp_path):
    kills = random.Random(str(settings)).sample(range(2, 7), 3)
    statuses = interrupted(tmp_path / "run", settings, kills)
    assert statuses == [-signal.SIGKILL] * 3 + [0]
    assert_same_run(tmp_path / "run", reference(**settings))


@pytest.mark.parametrize("settings", [PLAIN, UNEVEN, SCALED], ids=["plain", "uneven", "scaled"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.slow
def test_killed_at_many_random_steps(settings, seed, reference, tmp_path):
    draw = random.Random(seed)
    statuses = interrupted(tmp_path / "run", settings, [draw.randrange(1, 16) for _ in range(5)])
    assert statuses[-1] == 0
    assert_same_run(tmp_path / "run", reference(**settings))


@pytest.mark.parametrize("call", [5, 6])
def test_killed_while_a_checkpoint_is_written(call, reference, tmp_path):
    """Before the third file is synced (and renamed), and before its folder is."""
    output = tmp_path / "run"
    process = h.start(h.recipe(output, **PLAIN), before=functools.partial(h.at_fsync, call, h.die))
    assert h.finish(process) == -signal.SIGKILL
    leftovers = [name for name in os.listdir(output / "checkpoints") if name.startswith(".step")]
    assert len(leftovers) == call % 2
    assert newest_readable(output / "checkpoints")[0].name == f"step-{call // 2:08d}.ckpt"
    assert h.finish(h.start(h.recipe(output, **PLAIN), resume=True)) == 0
    assert_same_run(output, reference(**PLAIN))
    assert not [name for name in os.listdir(output / "checkpoints") if name.startswith(".")]


def test_full_disk(reference, tmp_path):
    """The run stops with one line, the last good checkpoint is whole, and with room again it goes on from there."""
    output = tmp_path / "run"
    process = h.start(h.recipe(output, **PLAIN), before=functools.partial(h.at_fsync, 6, h.fill_disk))
    assert h.finish(process) == 2
    error = (tmp_path / "run.error").read_text()
    assert "step-00000004.ckpt" in error
    assert "--resume" in error
    assert "step-00000003.ckpt" in error.split("checkpoints that are there")[1]
    assert newest_readable(output / "checkpoints")[0].name == "step-00000003.ckpt"
    assert not [name for name in os.listdir(output / "checkpoints") if name.startswith(".")]
    assert h.finish(h.start(h.recipe(output, **PLAIN), resume=True)) == 0
    assert_same_run(output, reference(**PLAIN))


def test_preempted(reference, tmp_path):
    """No interval makes a checkpoint before the end: the signal does (SIGUSR1: test_two_processes_resume)."""
    settings = {"checkpoint_every": 12}
    statuses = interrupted(tmp_path / "run", settings, [3], signal.SIGTERM)
    assert statuses == [EXIT_PREEMPTED, 0]
    starts = {path.name for path in (tmp_path / "run" / "logs" / "csv").iterdir()}
    assert len(starts) == 2, "it did not resume from the checkpoint that the signal asked for"
    assert_same_run(tmp_path / "run", reference(**settings))


STUCK = {"checkpoint_every": 12, "dev_every": 4}


@pytest.mark.parametrize(("accumulate", "at"), [(1, (1, 2)), (2, (1, 3))], ids=["between steps", "within a step"])
def test_preempted_while_no_batch_comes(accumulate, at, reference, tmp_path):
    """The last step is saved, at once, and the run goes on from there bit for bit."""
    output, fed, settings = tmp_path / "run", tmp_path / "fed", STUCK | {"accumulate": accumulate}
    process = h.start(h.recipe(output, **settings), fed=str(fed), stuck=at)
    start = time.monotonic()
    assert h.signal_after(process, fed, 5 * at[0] + at[1] + 1, signal.SIGTERM) == EXIT_PREEMPTED
    steps = (5 * at[0] + at[1] - 1) // accumulate  # a batch is read ahead
    assert [path.name for path in step_files(output / "checkpoints")] == [
        f"step-{step:08d}.ckpt" for step in sorted({steps, *best_so_far(reference(**settings), steps)})
    ]
    assert time.monotonic() - start < 60
    assert h.finish(h.start(h.recipe(output, **settings), resume=True)) == 0
    assert_same_run(output, reference(**settings))


def best_so_far(reference, steps):
    """The step of the best dev loss up to ``steps``, if there was one."""
    losses = {step: loss for step, loss in h.logged(reference, "dev/loss").items() if step <= steps}
    return {min(losses, key=losses.get)} if losses else set()


def test_preempted_while_the_first_batch_does_not_come(tmp_path):
    fed = tmp_path / "fed"
    process = h.start(h.recipe(tmp_path / "run"), fed=str(fed), stuck=(0, 0))
    assert h.signal_after(process, fed, 1, signal.SIGTERM) == EXIT_PREEMPTED
    assert step_files(tmp_path / "run" / "checkpoints") == []


def short_grace():
    batches.GRACE_SECONDS = 0.3


def test_preempted_while_no_dev_batch_comes(tmp_path):
    """The steps so far are saved; what is lost is one dev loss."""
    fed, output = tmp_path / "fed", tmp_path / "run"
    process = h.start(h.recipe(output, **STUCK), fed=str(fed), stuck=(99, 2), before=short_grace)
    assert h.signal_after(process, fed, 100, signal.SIGTERM) == EXIT_PREEMPTED
    assert newest_readable(output / "checkpoints")[0].name == "step-00000004.ckpt"
    assert h.finish(h.start(h.recipe(output, **STUCK), resume=True)) == 0
    assert sorted(h.logged(output)) == list(range(1, 13))


def test_preempted_while_one_of_two_has_no_batch(tmp_path):
    """Both stop at the same step; the one that waits does so with empty batches."""
    settings = {"devices": 2, "checkpoint_every": 12}
    output, fed = tmp_path / "run", tmp_path / "fed"
    processes = h.start_all(h.recipe(output, **settings), fed=str(fed), stuck=(1, 1), before=short_grace)
    assert h.signal_after(processes[1], fed, 6, signal.SIGTERM) == EXIT_PREEMPTED
    assert h.finish(processes[0]) == EXIT_PREEMPTED
    assert [h.finish(p) for p in h.start_all(h.recipe(output, **settings), resume=True)] == [0, 0]
    assert sorted(h.logged(output)) == list(range(1, 13))


def test_a_run_that_is_extended(reference, tmp_path):
    """From there on its learning rate is that of the longer run; the same whenever it is killed."""
    outputs = [tmp_path / "plain", tmp_path / "killed"]
    for output in outputs:
        assert h.finish(h.start(h.recipe(output, checkpoint_every=2, max_steps=6))) == 0
    short = h.logged(reference(**PLAIN))
    fed = tmp_path / "fed"
    process = h.start(h.recipe(outputs[1], checkpoint_every=2), resume=True, fed=str(fed))
    assert h.signal_after(process, fed, 4, signal.SIGKILL) == -signal.SIGKILL
    for output in outputs:
        assert h.finish(h.start(h.recipe(output, checkpoint_every=2), resume=True)) == 0
    assert_same_run(*outputs)
    rates, whole = (h.logged(output, "train/lr") for output in (outputs[0], reference(**PLAIN)))
    assert {step: rates[step] for step in range(7, 13)} == {step: whole[step] for step in range(7, 13)}
    assert rates[6] < whole[6]
    assert h.logged(outputs[0])[1] == short[1]
    assert h.checkpoint(outputs[0])["EKD_Run"]["recipe"]["trainer"]["max_steps"] == 12


class Stuck(Distiller):
    def forward(self, batch, **kwargs):
        while batch.utterances[0].startswith("0-2"):
            Path(os.environ["STUCK"]).touch()
            time.sleep(0.1)
        return super().forward(batch, **kwargs)


def test_a_second_signal_ends_it(tmp_path):
    """At once, but not where it follows so soon that it is the same one, sent by scheduler and launcher."""
    stuck = tmp_path / "stuck"
    process = h.start(h.recipe(tmp_path / "run"), environment={"STUCK": str(stuck)}, kind=Stuck)
    while not stuck.exists():
        time.sleep(0.01)
    for pause in (0.5, 1.0):
        os.kill(process.pid, signal.SIGTERM)
        process.join(pause)
        assert process.exitcode is None
    os.kill(process.pid, signal.SIGTERM)
    assert h.finish(process) == -signal.SIGTERM


def test_killed_between_empty_steps(tmp_path):
    """Steps that do not count are made again, and nothing else shows."""
    options = {"odd": {(0, index): "empty" for index in (1, 2, 4)} | {(1, 3): "empty"}}
    settings = {"checkpoint_every": 2, "max_steps": 9}
    assert h.finish(h.start(h.recipe(tmp_path / "whole", **settings), **options)) == 0
    for count in (4, 5, 9):
        fed = tmp_path / "fed"
        fed.unlink(missing_ok=True)
        process = h.start(h.recipe(tmp_path / "run", **settings), resume=True, fed=str(fed), **options)
        h.signal_after(process, fed, count, signal.SIGTERM if count == 4 else signal.SIGKILL)
    assert h.finish(h.start(h.recipe(tmp_path / "run", **settings), resume=True, **options)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_unreadable_checkpoints_are_passed_over(reference, tmp_path, caplog):
    output, settings = tmp_path / "run", {"checkpoint_every": 1, "keep_checkpoints": 3}
    reference = reference(**settings)
    assert interrupted(output, settings, [8])[0] == -signal.SIGKILL
    whole, flipped, short = step_files(output / "checkpoints")[-3:]
    short.write_bytes(short.read_bytes()[:-5000])
    contents = bytearray(flipped.read_bytes())
    contents[len(contents) // 2] ^= 1
    flipped.write_bytes(contents)
    assert newest_readable(output / "checkpoints")[0] == whole
    assert [record.message.split(":")[0] for record in caplog.records] == [str(short), str(flipped)]
    assert h.finish(h.start(h.recipe(output, **settings), resume=True)) == 0
    assert_same_run(output, reference)
    for path in step_files(output / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its"):
        newest_readable(output / "checkpoints")


def test_two_processes_resume(tmp_path):
    """Each process has its own random state; a signal to one of them stops both at the same step."""
    settings = {"devices": 2, "checkpoint_every": 12, "max_steps": 12}
    whole, output, fed = tmp_path / "whole", tmp_path / "run", tmp_path / "fed"
    assert [h.finish(p) for p in h.start_all(h.recipe(whole, **settings))] == [0, 0]
    first, second = h.start_all(h.recipe(output, **settings), fed=str(fed))
    assert h.signal_after(second, fed, 6, signal.SIGUSR1) == EXIT_PREEMPTED
    assert h.finish(first) == EXIT_PREEMPTED
    states = h.checkpoint(output)["EKD_Run"]["ranks"]["torch"]
    assert not torch.equal(states[0], states[1])
    with pytest.raises(UserError, match="cannot resume with 1 process"):
        h.run(h.recipe(output, checkpoint_every=12), resume=True)
    assert [h.finish(p) for p in h.start_all(h.recipe(output, **settings), resume=True)] == [0, 0]
    assert len(list((output / "logs" / "csv").iterdir())) == 2
    assert_same_run(output, whole)
