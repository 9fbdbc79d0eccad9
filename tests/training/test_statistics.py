"""Losses since the last log, and steps whose loss or gradient is not finite."""

from __future__ import annotations

import dataclasses

import helpers_train as h
import pytest
import torch

from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.training.checkpoints import step_files
from s3prl_ekd.training.statistics import StepStatistics


def test_statistics_counts_in_a_row():
    meter = StepStatistics(torch.device("cpu"), 1)
    for loss in (1.0, torch.nan, torch.nan, 3.0, torch.nan):
        meter.add_batch({"loss": torch.tensor(10 * loss)}, (str(loss),))
        meter.end_step(torch.tensor(10.0), torch.tensor(loss), ~torch.isfinite(torch.tensor(loss)))
    summary = meter.summary(bad_recordings=4)
    assert (summary.loss, summary.steps, summary.skipped, summary.longest, summary.frames) == (2.0, 5, 3, 2, 50)
    assert summary.bad_recordings == 4
    assert summary.suspects == ["nan"] * 3
    again = StepStatistics(torch.device("cpu"), 1)
    again.load_state(meter.state())
    again.add_batch({"loss": torch.tensor(torch.nan)}, ("x",))
    again.end_step(torch.tensor(10.0), torch.tensor(torch.nan), torch.tensor(True))
    assert again.summary().longest == 2, "a row may begin before a log and a resumption"
    assert again.summary().skipped_ever == 4


def test_a_log_is_the_mean_since_the_last_one(finished, tmp_path):
    assert h.run(h.recipe(tmp_path / "run", log_every=5)) == 0
    each, means = h.logged(finished), h.logged(tmp_path / "run")
    assert list(means) == [5, 10, 12]
    assert means[10] == pytest.approx(sum(each[step] for step in range(6, 11)) / 5, rel=1e-6)
    assert means[12] == pytest.approx((each[11] + each[12]) / 2, rel=1e-6)


class Unbounded(Distiller):
    """The loss of a batch is infinite by a constant, its gradient finite."""

    def forward(self, batch, **kwargs):
        output = super().forward(batch, **kwargs)
        if batch.utterances[0] != "0-2-u0":
            return output
        metrics = output.metrics | {"loss": output.metrics["loss"] + torch.inf}
        return dataclasses.replace(output, loss=output.loss + torch.inf, metrics=metrics)


@pytest.mark.parametrize("precision", ["32", "fp16"])
@pytest.mark.parametrize(
    "wrong", [{"odd": {(0, 2): "nan"}}, {"kind": Unbounded}], ids=["nan", "infinite loss, finite gradient"]
)
def test_a_step_that_is_not_finite_is_skipped(precision, wrong, tmp_path, caplog):
    """The third step changes neither weights nor the optimizer's averages, is counted, and its utterances are named."""
    settings = {"max_steps": 3, "precision": precision, "checkpoint_every": 1, "keep_checkpoints": 3}
    assert h.run(h.recipe(tmp_path / "run", **settings), **wrong) == 0
    before, after = (h.checkpoint(tmp_path / "run", f"step-0000000{n}.ckpt") for n in (2, 3))
    assert all(torch.equal(after["EKD_Student"][name], tensor) for name, tensor in before["EKD_Student"].items())
    for old, new in zip(*(s["optimizer_states"][0]["state"].values() for s in (before, after)), strict=True):
        assert all(torch.equal(new[key], value) for key, value in old.items())
    assert h.logged(tmp_path / "run", "train/skipped_steps") == {1: 0, 2: 0, 3: 1}
    assert "1 of the steps up to 3 skipped" in caplog.text
    assert "0-2-u0, 0-2-u1" in caplog.text
    assert "0-1-u0" not in caplog.text


def test_many_in_a_row_end_the_run_with_a_checkpoint(tmp_path):
    odd = {(0, index): "nan" for index in (2, 3, 4)}
    config = h.recipe(
        tmp_path / "run", max_nonfinite=3, log_every=2, checkpoint_every=100, max_steps=20, data={"dev_cuts": []}
    )
    with pytest.raises(UserError, match="3 steps in a row up to step 6") as error:
        h.run(config, odd=odd)
    assert "0-2-u0, 0-2-u1, 0-3-u0" not in str(error.value), "already named with the log before"
    assert "0-4-u0, 0-4-u1" in str(error.value)
    assert [path.name for path in step_files(tmp_path / "run" / "checkpoints")] == ["step-00000006.ckpt"]
    assert all(torch.isfinite(t).all() for t in h.checkpoint(tmp_path / "run")["EKD_Student"].values())
    assert h.run(config, resume=True, odd=odd) == 0, "the resumed run gets another chance"
