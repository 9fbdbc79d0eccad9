"""Gates in a step: what the budget adds to the gradient, with accumulation, several processes and half precision."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal

import helpers_train as h
import pytest
import torch

import s3prl_ekd.training.module
import s3prl_ekd.training.run
from s3prl_ekd import cost
from s3prl_ekd.student.folder import load_student
from s3prl_ekd.training.batches import EndlessBatches, Position
from s3prl_ekd.training.optim import learning_rate_factor, parameter_groups
from s3prl_ekd.training.pruning import new_gates

PRUNING = {"budget": {"sparsity": 0.4}, "warmup_steps": 3, "learning_rate": 0.05}


def recipe(output, **trainer):
    return h.recipe(output, student=h.NO_DROPOUT, more={"pruning": PRUNING}, **trainer)


def by_hand(config, batches):
    """The same training in plain torch: the Lagrangian is added once to the masked mean over all frames of a step."""
    distiller, pruning = h.build(config), config.pruning
    gates = new_gates(pruning, distiller.student, config.seed)
    groups = parameter_groups(distiller, config.optimizer.weight_decay)
    settings = {"lr": config.optimizer.lr, "betas": config.optimizer.betas, "eps": config.optimizer.eps}
    optimizer = torch.optim.AdamW(groups, **settings)
    alphas, lambdas = gates.hard_concrete.log_alpha, gates.budget.lambdas
    of_gates = torch.optim.AdamW([alphas], **settings | {"lr": pruning.learning_rate}, weight_decay=0)
    ascent = torch.optim.AdamW([lambdas], **settings | {"lr": pruning.learning_rate}, weight_decay=0, maximize=True)
    torch.manual_seed(config.seed)
    for step in range(config.trainer.max_steps):
        group = [next(batches).batch for _ in range(config.trainer.accumulate)]
        frames = sum(int(distiller.student.frame_lengths(batch.lengths).sum()) for batch in group)
        for one in (optimizer, of_gates, ascent):
            one.zero_grad()
        for batch in group:
            distiller.gates = gates
            distiller(batch, total_frames=frames).loss.backward()
            distiller.gates = None
        gates.penalty(step)[0].backward()
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), config.optimizer.clip_norm)
        for part in optimizer.param_groups:
            part["lr"] = config.optimizer.lr * learning_rate_factor(step, config.trainer.max_steps, config.schedule)
        for one in (optimizer, of_gates, ascent):
            one.step()
    return distiller, gates


def test_a_step_with_gates(tmp_path, no_switch):
    """Accumulation, a gradient that is clipped, and multipliers that ascend."""
    config = recipe(tmp_path / "run", max_steps=6, accumulate=2)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clip_norm=0.2))
    assert h.run(config) == 0
    assert min(h.logged(config.output, "train/grad_norm").values()) > 0.2
    distiller, gates = by_hand(config, iter(EndlessBatches(h.SyntheticStream(config), Position())))
    found = h.checkpoint(config.output)["state_dict"]
    expected = distiller.state_dict(prefix="distiller.") | gates.state_dict(prefix="distiller.gates.")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5, msg=name)
    assert (found["distiller.gates.budget.lambdas"] > 0).all()


def test_a_gradient_of_gates_alone_that_is_not_finite(tmp_path, no_switch, monkeypatch):
    """Its step is skipped, the weights' part of it, too."""

    def new_gates(*args):
        gates, steps = new_gates_of_product(*args), itertools.count()
        gates.hard_concrete.log_alpha.register_hook(lambda grad: grad * (math.inf if next(steps) == 2 else 1.0))
        return gates

    new_gates_of_product = s3prl_ekd.training.module.new_gates
    monkeypatch.setattr(s3prl_ekd.training.module, "new_gates", new_gates)
    config = recipe(tmp_path / "run", max_steps=5)
    assert h.run(config) == 0
    assert h.logged(config.output, "train/skipped_steps")[5] == 1
    for name, tensor in h.checkpoint(config.output)["state_dict"].items():
        assert torch.isfinite(tensor).all(), name


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """A run of twelve steps with gates."""
    output = tmp_path_factory.mktemp("twelve") / "run"
    assert h.finish(h.start(recipe(output), before=keep_whole)) == 0
    return output


def test_what_is_logged(twelve):
    logged = {name: h.logged(twelve, f"pruning/{name}") for name in ("expected_parameters", "target_parameters")}
    targets = list(logged["target_parameters"].values())
    full = cost.parameters(cost.FixedSizes.of(recipe(twelve).student), cost.UnitCounts.of(recipe(twelve).student))
    assert targets[3:] == pytest.approx([0.6 * full] * 9)
    assert targets[0] == pytest.approx(logged["expected_parameters"][1])
    for name in ("lambda1", "lambda2", "left/conv", "left/heads", "left/intermediate", "left/positions"):
        assert len(h.logged(twelve, f"pruning/{name}")) == 12
    assert 0.5 < h.logged(twelve, "pruning/left/heads")[1] < 1


def test_killed_while_it_prunes(twelve, tmp_path):
    """Gates, multipliers and their optimizer's state go on bit for bit."""
    output, fed = tmp_path / "run", tmp_path / "fed"
    process = h.start(recipe(output), before=keep_whole, fed=str(fed))
    assert h.signal_after(process, fed, 7, signal.SIGKILL) == -signal.SIGKILL
    assert h.finish(h.start(recipe(output), before=keep_whole, resume=True)) == 0
    h.assert_same_run(output, twelve)
    assert h.logged(output, "pruning/lambda1") == h.logged(twelve, "pruning/lambda1")


def test_half_precision(twelve, tmp_path):
    """Where AdamW is not fused, and a GradScaler divides the gradients: the budget's is never multiplied."""
    assert h.finish(h.start(recipe(tmp_path / "run", precision="fp16"), before=keep_whole)) == 0
    for name in ("lambda1", "lambda2", "expected_parameters"):
        ours, theirs = h.logged(tmp_path / "run", f"pruning/{name}"), h.logged(twelve, f"pruning/{name}")
        assert ours == pytest.approx(theirs, rel=0.02, abs=1e-4), name


def test_two_processes(twelve, tmp_path):
    """Each draws its own gates; the budget's gradient is that of one process."""
    config = recipe(tmp_path / "run", devices=2)
    assert [h.finish(one) for one in h.start_all(config, before=keep_whole)] == [0, 0]
    for name in ("lambda1", "lambda2", "expected_parameters"):
        ours, theirs = h.logged(tmp_path / "run", f"pruning/{name}"), h.logged(twelve, f"pruning/{name}")
        assert ours == pytest.approx(theirs, rel=0.02, abs=1e-4), name


@pytest.mark.slow
def test_two_processes_at_the_switch(tmp_path):
    """The first of them is killed when it has shrunk the student; both go on to the same numbers."""
    stages = [{"name": "prune", "max_steps": 5}, {"name": "recover", "max_steps": 3}]
    whole, killed = (
        h.recipe(tmp_path / name, more={"pruning": PRUNING, "stages": stages}, devices=2)
        for name in ("whole", "killed")
    )
    assert [h.finish(one) for one in h.start_all(whole)] == [0, 0]
    first, second = h.start_all(killed, before=die_at_the_switch)
    assert h.finish(first) == -signal.SIGKILL
    second.kill()
    second.join()
    assert [h.finish(one) for one in h.start_all(killed, resume=True)] == [0, 0]
    for name in ("prune", "recover"):
        h.assert_same_run(tmp_path / "killed" / name, tmp_path / "whole" / name)


def die_at_the_switch():
    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    s3prl_ekd.training.run.save_student = die


def test_a_students_checkpoint_is_read_without_gates(twelve, caplog):
    load_student(twelve / "checkpoints" / "last.ckpt")
    assert "in the middle of pruning" in caplog.text


def keep_whole():
    """The student does not shrink."""
    s3prl_ekd.training.run.smaller_student = lambda student, gates: student


@pytest.fixture
def no_switch(monkeypatch):
    """The student stays as it is."""
    monkeypatch.setattr("s3prl_ekd.training.run.smaller_student", lambda student, gates: student)
