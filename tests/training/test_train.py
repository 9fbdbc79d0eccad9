"""`s3prl-ekd distill`: what a step is, what a run leaves behind, what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import re
import types

import helpers_train as h
import pytest
import torch
import yaml
from helpers_models import FakeTeacher
from helpers_processes import another_at_work

import s3prl_ekd.training.run
from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.cli import main
from s3prl_ekd.config.recipe import DistillConfig, ObjectiveConfig
from s3prl_ekd.config.training import RunConfig, ScheduleConfig, apply_override, check_resumable
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import load_student, load_student_and_heads
from s3prl_ekd.training import random_state
from s3prl_ekd.training.batches import EndlessBatches, Position
from s3prl_ekd.training.checkpoints import step_files
from s3prl_ekd.training.curve import read_log
from s3prl_ekd.training.optim import learning_rate_factor, parameter_groups
from s3prl_ekd.training.statistics import StepStatistics


@pytest.fixture(autouse=True)
def _propagating_logs(monkeypatch):
    """Lightning sets its own loggers' levels; ours must reach caplog whatever ran before."""
    monkeypatch.setattr(logging.getLogger("s3prl_ekd"), "propagate", True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 steps with everything on."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert h.run(h.recipe(output)) == 0
    return output


# ---- recipe and command line


def write_recipe(path, **changes):
    recipe = h.recipe(path / "run").to_mapping() | changes
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(path / "recipe.yaml")


@pytest.mark.parametrize(
    ("data", "overrides", "says"),
    [
        (
            {"batch_seconds": 75},
            ["trainer.devices=4"],
            "300 s of audio: data.batch_seconds 75 x 4 device(s) x accumulate 1",
        ),
        (
            {"global_batch_seconds": 300},
            ["trainer.devices=4", "trainer.num_nodes=2", "trainer.accumulate=3"],
            "300 s of audio: data.global_batch_seconds, 12.5 s for each of 8 device(s) x accumulate 3",
        ),
        (
            {"batch_seconds": 75},
            ["trainer.devices=null"],
            "75 s of audio (data.batch_seconds) x all devices x accumulate 1",
        ),
    ],
)
def test_the_size_of_a_step_is_said(data, overrides, says, tmp_path, capsys):
    recipe = write_recipe(tmp_path, data={"cuts": ["train"], **data})
    assert main(["distill", recipe, *overrides, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == f"# a step is up to {says}"
    assert RunConfig.from_mapping(yaml.safe_load(printed)).to_mapping() == yaml.safe_load(printed)


def test_a_step_of_so_many_seconds_whatever_the_devices(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    heard = []

    def open_inputs(config, *place):
        heard.append(config.data.batch_seconds)
        return h.open_inputs(config, *place)

    data = {"batch_seconds": None, "global_batch_seconds": 6.0, "dev_cuts": []}
    config = h.recipe(tmp_path / "run", data=data, max_steps=1, accumulate=3)
    assert s3prl_ekd.training.run.train(config, open_inputs=open_inputs) == 0
    assert heard == [2.0]
    assert "a step is up to 6 s of audio: data.global_batch_seconds, 2 s for each of 1 device(s) x acc" in caplog.text
    assert h.checkpoint(tmp_path / "run")["EKD_Run"]["recipe"]["data"]["global_batch_seconds"] == 6.0
    assert config.of_processes(2).data.batch_seconds == 1.0
    with pytest.raises(
        UserError, match=r"data\.global_batch_seconds: .* are 0\.25 s each and hold no utterance of max_"
    ):
        h.recipe("x", data=data | {"global_batch_seconds": 1.0}).of_processes(4)
    with pytest.raises(UserError, match=r"give batch_seconds \(of each device\) or global_batch_seconds"):
        h.recipe("x", data={"global_batch_seconds": 6.0})


def test_print_config_resolves(tmp_path, capsys):
    overrides = ["trainer.devices=4", "teachers.0.layers=[0, 2]", "student.initialize_from=null", "optimizer.lr=1e-4"]
    assert main(["distill", write_recipe(tmp_path), *overrides, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["devices"] == 4
    assert printed["teachers"][0]["layers"] == [0, 2]
    assert printed["optimizer"] == {
        "lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "clip_norm": 5.0,
    }  # fmt: skip
    assert RunConfig.from_mapping(printed).to_mapping() == printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.device=4", "unknown key 'trainer.device'; did you mean 'devices'"),
        ("trainer.devices", "expected key.path=value"),
        ("trainer.devices=[", "not valid YAML"),
        ("trainer.devices=many", "trainer.devices: expected int"),
        ("teachers.3.layers=[1]", "number below 1"),
        ("output.x=1", "has no keys below"),
        ("trainer.precision=half", "trainer.precision: unknown value 'half'"),
        ("trainer.accumulate=0", "trainer.accumulate: expected at least 1"),
        ("schedule.warmup=1", "schedule.warmup: expected less than 1"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas"),
    ],
)
def test_mistakes_are_named(override, message, tmp_path, capsys):
    assert main(["distill", write_recipe(tmp_path), override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_precision_32_needs_no_quotes(tmp_path):
    config = h.recipe(tmp_path, precision=32)
    assert config.trainer.precision == "32"


def test_recipe_splits_into_model_and_training(tmp_path):
    config = h.recipe(tmp_path)
    assert type(config.distill) is DistillConfig
    assert config.distill.teachers == config.teachers


# ---- optimizer


def test_weight_decay_spares_biases_and_norms(tmp_path):
    distiller = h.build(h.recipe(tmp_path))
    names = {id(parameter): name for name, parameter in distiller.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in parameter_groups(distiller, 0.1))
    assert decayed | free == set(names.values())
    assert not decayed & free
    spared = {name for name in names.values() if name.endswith(".bias") or "layer_norm" in name}
    assert free == spared | {"student.encoder.pos_conv_embed.conv.parametrizations.weight.original0"}
    assert "heads.0.2.weight" in decayed


def test_learning_rate():
    config = ScheduleConfig(warmup=0.2, final=0.1)
    factors = [learning_rate_factor(step, 10, config) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.55)
    assert factors[10] == pytest.approx(0.1)
    cosine = ScheduleConfig.from_mapping({"warmup": 0.2, "decay": "cosine"})
    assert learning_rate_factor(6, 10, cosine) == pytest.approx(0.5)
    constant = ScheduleConfig.from_mapping({"warmup": 0.0, "decay": "constant", "final": 0.1})
    assert {learning_rate_factor(step, 10, constant) for step in range(11)} == {1.0}


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


# ---- what a run leaves behind


def test_losses_fall_and_are_logged(finished):
    losses, dev = h.logged(finished), h.logged(finished, "dev/loss")
    assert list(losses) == list(range(1, 13))
    assert sorted(dev) == [4, 8, 12]
    assert dev[12] < dev[4]
    assert list((finished / "logs" / "tensorboard").glob("events.out.tfevents.*"))
    for column in ("train/l1/fake/1", "train/cosine/fake/2", "train/magnitude/fake/1", "speed/hours_per_hour"):
        assert len(h.logged(finished, column)) == 12
    rates = h.logged(finished, "train/lr")
    assert rates[1] == pytest.approx(3e-3)
    assert rates[12] == pytest.approx(3e-3 / 11)


def test_a_log_is_the_mean_since_the_last_one(finished, tmp_path):
    assert h.run(h.recipe(tmp_path / "run", log_every=5)) == 0
    each, means = h.logged(finished), h.logged(tmp_path / "run")
    assert list(means) == [5, 10, 12]
    assert means[10] == pytest.approx(sum(each[step] for step in range(6, 11)) / 5, rel=1e-6)
    assert means[12] == pytest.approx((each[11] + each[12]) / 2, rel=1e-6)


def test_checkpoints(finished):
    folder = finished / "checkpoints"
    dev = h.logged(finished, "dev/loss")
    best = min(dev, key=dev.get)
    assert {path.name for path in step_files(folder)} == {f"step-{n:08d}.ckpt" for n in (9, 12, best)}
    assert (folder / "best.ckpt").resolve().name == f"step-{best:08d}.ckpt"
    assert (folder / "last.ckpt").resolve().name == "step-00000012.ckpt"
    states = h.checkpoint(finished)
    assert (states["EKD_Run"]["epoch"], states["EKD_Run"]["consumed"]) == (2, 2)
    assert {name.split(".")[0] for name in states["EKD_Student"]} == {"student", "heads"}, "teachers are not saved"


def test_resolved_recipe_lies_beside_the_run(finished):
    assert RunConfig.from_yaml(finished / "recipe.yaml") == h.recipe(finished)


def test_student_folder_and_checkpoint_are_the_same_student(finished, tmp_path):
    """The folder exported at the end, the checkpoint, and what export-checkpoint makes of it."""
    student, heads = load_student_and_heads(finished / "student")
    expected = h.checkpoint(finished)["EKD_Student"]
    ours = {f"student.{k}": v for k, v in student.state_dict().items()}
    ours |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert main(["export-checkpoint", str(finished / "checkpoints" / "last.ckpt"), str(tmp_path / "out")]) == 0
    assert main(["export-checkpoint", str(finished), str(tmp_path / "of_the_run")]) == 0
    for path in (finished / "checkpoints" / "last.ckpt", tmp_path / "out", tmp_path / "of_the_run"):
        again = load_student(path).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in student.state_dict().items())
    assert DistillConfig.from_yaml(tmp_path / "out" / "recipe.yaml") == h.recipe(finished).distill


def test_curve(finished, tmp_path):
    """What a run logs is what the picture is made of."""
    log = read_log(finished)
    assert [step for step, _ in log["train/loss"]] == sorted({step for step, _ in log["train/loss"]})
    assert {"dev/loss", "train/cosine/fake/1", "train/cosine/fake/2", "train/magnitude/fake/1"} <= log.keys()
    assert main(["curve", str(finished), str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_weights_are_stored_once(finished):
    states = h.checkpoint(finished)
    for name, tensor in states["EKD_Student"].items():
        assert tensor.data_ptr() == states["state_dict"][f"distiller.{name}"].data_ptr()


# ---- many processes


def two_processes(output, launcher=h.torchrun, **settings):
    options = {key: settings.pop(key) for key in ("batches", "odd", "bad") if key in settings}
    config = h.recipe(output, student=h.NO_DROPOUT, devices=2, **settings)
    return [h.finish(process) for process in h.start_all(config, launcher, **options)]


@pytest.mark.parametrize("launcher", [h.torchrun, h.slurm])
def test_two_processes_are_one_that_accumulates(launcher, tmp_path):
    """Also where one of them has an empty batch or one whose loss is not finite: steps are made or skipped together."""
    settings = {"batches": 6, "odd": {(0, 3): "empty", (1, 2): "nan"}, "max_steps": 8}
    assert two_processes(tmp_path / "two", launcher, **settings) == [0, 0]
    one = h.recipe(tmp_path / "one", student=h.NO_DROPOUT, accumulate=2, max_steps=8)
    assert h.run(one, batches=6, odd=settings["odd"]) == 0
    for column in ("train/loss", "dev/loss", "train/grad_norm", "train/l1/fake/1", "train/skipped_steps"):
        ours, theirs = h.logged(tmp_path / "two", column), h.logged(tmp_path / "one", column)
        for step in theirs:
            if step in ours:
                assert ours[step] == pytest.approx(theirs[step], abs=1e-5, nan_ok=True), (column, step)
    assert len(h.logged(tmp_path / "two")) == 8
    assert h.logged(tmp_path / "two", "train/skipped_steps")[8] == 1
    ours, theirs = (h.checkpoint(tmp_path / name)["EKD_Student"] for name in ("two", "one"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("devices", "launcher"), [(1, h.torchrun), (3, h.torchrun), (1, h.slurm)])
def test_wrong_number_of_processes(devices, launcher, tmp_path):
    process = h.start(h.recipe(tmp_path / "run", devices=devices), environment=launcher(0, 2, 29500))
    assert h.finish(process) == 2
    assert f"is {devices} x 1, but 2 processes were started" in (tmp_path / "run.error").read_text()


# ---- numbers that go wrong


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


NOTHING = {(epoch, index): "empty" for epoch in range(99) for index in range(6)}


@pytest.mark.parametrize("devices", [1, 2])
def test_nothing_to_train_on_ends_the_run(devices, tmp_path):
    """Soon, in all processes, with one line; nothing is left, and no student."""
    settings = {"odd": NOTHING, "batches": 6}
    if devices == 2:
        assert two_processes(tmp_path / "run", **settings) == [2, 2]
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
    assert two_processes(tmp_path / "run", bad=1, batches=40, max_steps=20) == [2, 2]
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


class OutOfMemory(Distiller):
    def forward(self, batch, **kwargs):
        if batch.utterances[0] == "0-2-u0":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(batch, **kwargs)


def test_out_of_memory_says_which_key_to_lower(tmp_path):
    with pytest.raises(UserError) as error:
        h.run(h.recipe(tmp_path / "run"), kind=OutOfMemory)
    assert "0.4 s of speech (2 utterances, the longest 0.2 s)" in str(error.value)
    assert "data.batch_seconds (now 1)" in str(error.value)


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


# ---- resuming


def test_a_folder_with_a_run_is_not_overwritten(finished):
    with pytest.raises(UserError, match=r"holds a run already \(step-00000012.ckpt\); add --resume"):
        h.run(h.recipe(finished))


def test_resume_refuses_another_recipe(finished):
    changed = dataclasses.replace(h.recipe(finished, accumulate=2), seed=7)
    with pytest.raises(UserError, match=r"trainer.accumulate: 1 there, 2 here; seed: 0 there, 7 here"):
        h.run(changed, resume=True)
    saved = h.recipe("elsewhere", log_every=7, strategy="ddp", data={"num_workers": 0}).to_mapping()
    check_resumable(saved, h.recipe(finished))
    check_resumable(saved, h.recipe(finished, max_steps=13))
    with pytest.raises(UserError, match=r"trainer\.max_steps: 12 there, 11 here"):
        check_resumable(saved, h.recipe(finished, max_steps=11))


def test_a_run_from_before_there_was_a_setting_goes_on(tmp_path):
    """Its checkpoint's recipe lacks the setting, which then had what is now its default."""
    config = h.recipe(tmp_path / "run", max_steps=3)
    assert h.run(config) == 0
    path = (tmp_path / "run" / "checkpoints" / "last.ckpt").resolve()
    states = torch.load(path, weights_only=True)
    saved = states["EKD_Run"]["recipe"]
    del saved["objective"]["cosine_weight"], saved["data"]["timeout_seconds"], saved["data"]["global_batch_seconds"]
    torch.save(states, path)
    with pytest.raises(UserError, match=r"objective\.cosine_weight: 1\.0 there, 2\.0 here"):
        h.run(dataclasses.replace(config, objective=ObjectiveConfig(cosine_weight=2.0)), resume=True)
    assert h.run(h.recipe(tmp_path / "run", max_steps=4), resume=True) == 0
    assert list(h.logged(tmp_path / "run")) == [1, 2, 3, 4]


def test_resume_refuses_other_data(finished):
    with pytest.raises(UserError, match="other data"):
        h.run(h.recipe(finished), resume=True, batches=7)


def test_resume_of_nothing_starts(tmp_path):
    assert h.run(h.recipe(tmp_path / "run", max_steps=2), resume=True) == 0
    assert list(h.logged(tmp_path / "run")) == [1, 2]


def test_resume_of_a_finished_run_exports_again(tmp_path):
    config = h.recipe(tmp_path / "run", max_steps=2)
    assert h.run(config) == 0
    (tmp_path / "run" / "student" / "config.json").unlink()
    assert h.run(config, resume=True) == 0
    load_student(tmp_path / "run" / "student")
    assert list(h.logged(tmp_path / "run")) == [1, 2]


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output: .* cannot be written"):
        h.run(h.recipe(tmp_path / "file" / "run"))


# ---- starts that come to nothing


def broken(*_, **__):
    raise UserError("of mine")


def test_a_failed_start_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="of mine"):
        s3prl_ekd.training.run.train(h.recipe(tmp_path / "new" / "run"), open_inputs=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_start_leaves_what_was_there_and_the_bad_recordings(tmp_path):
    def note_and_break(config, *_):
        BadRecordings(tmp_path / "bad_recordings.tsv").note(1, [("u0", "no good")])
        broken()

    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="of mine"):
        s3prl_ekd.training.run.train(h.recipe(tmp_path), open_inputs=note_and_break)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert found == {"logs", "logs/mine.txt", "bad_recordings.tsv"}


def test_one_process_at_a_time(tmp_path):
    with another_at_work(tmp_path), pytest.raises(UserError, match=f"another process is at work in {tmp_path}"):
        h.run(h.recipe(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu(tmp_path):
    with pytest.raises(UserError, match=r"no GPU here: give trainer\.accelerator=auto"):
        h.run(h.recipe(tmp_path / "run", accelerator="gpu"))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def fit(*_, **__):
        raise SystemExit(1)  # as Lightning does

    monkeypatch.setattr(s3prl_ekd.training.run.Trainer, "fit", fit)
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"):
        h.run(h.recipe(tmp_path / "run"))


# ---- parts


def test_random_states_come_back(tmp_path):
    import random

    import numpy as np

    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]

    draw()  # leaves half a pair of normal numbers behind
    torch.save(random_state.capture(), tmp_path / "states.pt")
    first = draw()
    random_state.restore(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draw() == first
    before = draw.__call__
    random_state.restore(torch.load(tmp_path / "states.pt", weights_only=True))
    with random_state.preserved():
        before()
    assert draw() == first


def test_batches_know_the_place_after_them(tmp_path):
    stream = h.SyntheticStream(h.recipe(tmp_path), batches=3)
    whole = list(itertools.islice(EndlessBatches(stream, Position()), 8))
    assert [placed.after for placed in whole[:4]] == [Position(0, 1), Position(0, 2), Position(0, 3), Position(1, 1)]
    for start in (2, 3, 4):
        again = list(itertools.islice(EndlessBatches(stream, whole[start - 1].after), 3))
        assert [p.batch.utterances for p in again] == [p.batch.utterances for p in whole[start : start + 3]]
    state = torch.get_rng_state()
    next(iter(EndlessBatches(stream, Position())))
    assert torch.equal(torch.get_rng_state(), state), "the stream draws from torch's generator, which must not show"
    with pytest.raises(UserError, match="not one batch"):
        next(iter(EndlessBatches(h.SyntheticStream(h.recipe(tmp_path), batches=0), Position())))


def test_statistics_counts_in_a_row():
    meter = StepStatistics(torch.device("cpu"), 1)
    for loss in (1.0, torch.nan, torch.nan, 3.0, torch.nan):
        meter.add_batch({"loss": torch.tensor(10 * loss)}, (str(loss),))
        meter.end_step(torch.tensor(10.0), torch.tensor(loss), ~torch.isfinite(torch.tensor(loss)))
    summary = meter.summary(bad_recordings=4)
    assert (summary.loss, summary.steps, summary.skipped, summary.longest, summary.frames) == (2.0, 5, 3, 2, 50)
    assert summary.bad_recordings == 4
    assert summary.suspects == [("nan",)] * 3
    again = StepStatistics(torch.device("cpu"), 1)
    again.load_state(meter.state())
    again.add_batch({"loss": torch.tensor(torch.nan)}, ("x",))
    again.end_step(torch.tensor(10.0), torch.tensor(torch.nan), torch.tensor(True))
    assert again.summary().longest == 2, "a row may begin before a log and a resumption"
    assert again.summary().skipped_ever == 4


def test_override_makes_missing_sections():
    mapping = {"trainer": None}
    apply_override(mapping, "trainer.devices=2")
    apply_override(mapping, "schedule.decay=cosine")
    assert mapping == {"trainer": {"devices": 2}, "schedule": {"decay": "cosine"}}


@pytest.fixture
def trackers(monkeypatch):
    """Says which modules are installed; gives what Weights & Biases was asked for."""
    made = []
    monkeypatch.setattr(s3prl_ekd.training.run, "WandbLogger", lambda **kwargs: made.append(kwargs))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)

    def installed(*names):
        find = lambda name: types.SimpleNamespace() if name in names else None  # noqa: E731
        monkeypatch.setattr(s3prl_ekd.training.run.importlib.util, "find_spec", find)

    return installed, made


def test_a_tracker_is_asked_for_and_said_if_missing(tmp_path, trackers, caplog, monkeypatch):
    """Nothing is uploaded that nobody asked for; what is asked for and not there is said in one line each."""
    installed, made = trackers
    loggers = functools.partial(s3prl_ekd.training.run._loggers, folder=tmp_path, start=None)
    unasked = RunConfig.from_mapping(
        {"teachers": [{"name": "a", "mini": "hubert"}], "data": {"cuts": ["a"]}, "output": "x"}
    )
    asked = h.recipe(tmp_path, wandb_project="speech")
    installed("wandb", "tensorboardX")
    assert len(loggers(unasked)) == 2
    assert made == []
    assert caplog.messages == []
    assert len(loggers(asked)) == 3
    assert made == [{"project": "speech", "save_dir": tmp_path / "logs", "offline": True}]
    assert "`wandb sync` uploads it" in caplog.text
    monkeypatch.setenv("WANDB_API_KEY", "key")
    loggers(asked)
    assert made[1]["offline"] is False
    caplog.clear()
    installed()
    assert [type(logger).__name__ for logger in loggers(asked)] == ["CSVLogger"]
    assert ["no TensorBoard log is written" in caplog.messages[0], "wandb is not installed" in caplog.messages[1]] == [
        True,
        True,
    ]
    assert len(made) == 2


@pytest.mark.slow
def test_compiled_parts_train_alike(finished, tmp_path):
    assert h.run(h.recipe(tmp_path / "run", compile=True, max_steps=4, student=h.NO_DROPOUT)) == 0
    assert h.run(h.recipe(tmp_path / "plain", max_steps=4, student=h.NO_DROPOUT)) == 0
    compiled, plain = h.logged(tmp_path / "run"), h.logged(tmp_path / "plain")
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert h.checkpoint(tmp_path / "run")["state_dict"].keys() == h.checkpoint(tmp_path / "plain")["state_dict"].keys()
