"""A step: the loss it minimises, steps of several processes, and steps without a recording."""

from __future__ import annotations

import dataclasses

import helpers_train as h
import pytest
import torch
from helpers_models import FakeTeacher

from s3prl_ekd.training.batches import EndlessBatches, Position
from s3prl_ekd.training.optim import learning_rate_factor, parameter_groups


def by_hand(config, batches):
    """The same training in plain torch: masked mean over the accumulated batches, clipping, unfused AdamW."""
    distiller = h.build(config)
    settings = config.optimizer
    groups = parameter_groups(distiller, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, foreach=False)
    for step in range(config.trainer.max_steps):
        group = [next(batches).batch for _ in range(config.trainer.accumulate)]
        frames = sum(int(distiller.student.frame_lengths(batch.lengths).sum()) for batch in group)
        optimizer.zero_grad()
        for batch in group:
            distiller(batch, total_frames=frames).loss.backward()
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), settings.clip_norm)
        for part in groups:
            part["lr"] = settings.lr * learning_rate_factor(step, config.trainer.max_steps, config.schedule)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = part["lr"]
        optimizer.step()
    return distiller


def test_a_run_is_adamw_on_the_masked_mean(tmp_path):
    """Accumulation, clipping, schedule and a weight decay that can be seen."""
    config = h.recipe(tmp_path / "run", student=h.NO_DROPOUT, max_steps=6, accumulate=2)
    optimizer = dataclasses.replace(config.optimizer, weight_decay=0.3, clip_norm=0.2)
    config = dataclasses.replace(config, optimizer=optimizer)
    assert h.run(config) == 0
    assert min(h.logged(config.output, "train/grad_norm").values()) > 0.2
    expected = by_hand(config, iter(EndlessBatches(h.SyntheticStream(config), Position()))).state_dict()
    state = h.checkpoint(config.output)["EKD_Student"]
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("launcher", [h.torchrun, h.slurm])
def test_two_processes_are_one_that_accumulates(launcher, tmp_path):
    """Also where one of them has an empty batch or one whose loss is not finite: steps are made or skipped together."""
    settings = {"batches": 6, "odd": {(0, 3): "empty", (1, 2): "nan"}, "max_steps": 5}
    assert h.two_processes(tmp_path / "two", launcher, **settings) == [0, 0]
    one = h.recipe(tmp_path / "one", student=h.NO_DROPOUT, accumulate=2, max_steps=5)
    assert h.run(one, batches=6, odd=settings["odd"]) == 0
    for column in ("train/loss", "dev/loss", "train/grad_norm", "train/l1/fake/1", "train/skipped_steps"):
        ours, theirs = h.logged(tmp_path / "two", column), h.logged(tmp_path / "one", column)
        for step in theirs:
            if step in ours:
                assert ours[step] == pytest.approx(theirs[step], abs=1e-5, nan_ok=True), (column, step)
    assert len(h.logged(tmp_path / "two")) == 5
    assert h.logged(tmp_path / "two", "train/skipped_steps")[5] == 1
    ours, theirs = (h.checkpoint(tmp_path / name)["EKD_Student"] for name in ("two", "one"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["32", "fp16"])
def test_empty_steps_do_not_count(precision, tmp_path):
    """Neither for the schedule nor for max_steps, dev losses or weights: as if the batches had not been."""
    odd = {(0, 1): "empty", (0, 4): "empty", (1, 0): "empty"}
    config = h.recipe(tmp_path / "run", student=h.NO_DROPOUT, max_steps=6, dev_every=2, precision=precision)
    assert h.run(config, odd=odd) == 0
    assert list(h.logged(config.output)) == [1, 2, 3, 4, 5, 6]
    assert list(h.logged(config.output, "dev/loss")) == [2, 4, 6]
    rates = h.logged(config.output, "train/lr")
    assert [rates[step] for step in rates] == pytest.approx(
        [3e-3 * learning_rate_factor(step, 6, config.schedule) for step in range(6)]
    )
    states = h.checkpoint(config.output)
    assert (states["EKD_Run"]["epoch"], states["EKD_Run"]["consumed"]) == (1, 4)
    assert {int(state["step"]) for state in states["optimizer_states"][0]["state"].values()} == {6}
    whole = EndlessBatches(h.SyntheticStream(config, odd=odd), Position())
    expected = by_hand(config, (placed for placed in whole if placed.batch.utterances)).state_dict()
    close = {"rtol": 1e-4, "atol": 2e-5} if precision == "32" else {"rtol": 0, "atol": 6 * 3e-3}  # Adam's six steps
    for name, tensor in expected.items():
        torch.testing.assert_close(states["EKD_Student"][name], tensor, **close, msg=name)


@pytest.mark.parametrize(("scale", "warned"), [(1, False), (1e3, True)])
def test_fp16_warns_of_large_targets(scale, warned, tmp_path, caplog, monkeypatch):
    def large(self, *args, **kwargs):
        output = FakeTeacher.hidden_states(self, *args, **kwargs)
        return dataclasses.replace(output, rows=(output.rows[0], output.rows[1] * scale))

    monkeypatch.setattr(h.TinyTeacher, "hidden_states", large)
    assert h.run(h.recipe(tmp_path / "run", max_steps=1, precision="fp16")) == 0
    assert ("teacher 'fake', layer 2: values up to" in caplog.text) == warned
    assert "layer 1: values" not in caplog.text


def test_bf16_runs(finished, tmp_path):
    assert h.run(h.recipe(tmp_path / "run", precision="bf16", max_steps=4)) == 0
    exact, rounded = h.logged(finished)[1], h.logged(tmp_path / "run")[1]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


@pytest.mark.slow
def test_compiled_parts_train_alike(finished, tmp_path):
    assert h.run(h.recipe(tmp_path / "run", compile=True, max_steps=4, student=h.NO_DROPOUT)) == 0
    assert h.run(h.recipe(tmp_path / "plain", max_steps=4, student=h.NO_DROPOUT)) == 0
    compiled, plain = h.logged(tmp_path / "run"), h.logged(tmp_path / "plain")
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert h.checkpoint(tmp_path / "run")["state_dict"].keys() == h.checkpoint(tmp_path / "plain")["state_dict"].keys()
