"""A whole run: what it leaves behind, when it does not start, and what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import functools
import logging
import types

import helpers_train as h
import pytest
import torch
from helpers_processes import another_at_work

import s3prl_ekd.training.run
from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.cli import main
from s3prl_ekd.config.recipe import DistillConfig, ObjectiveConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import load_student, load_student_and_heads
from s3prl_ekd.training.checkpoints import step_files
from s3prl_ekd.training.curve import read_log


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


@pytest.mark.parametrize(("devices", "launcher"), [(1, h.torchrun), (3, h.torchrun), (1, h.slurm)])
def test_wrong_number_of_processes(devices, launcher, tmp_path, monkeypatch):
    for name, value in launcher(0, 2, 29500).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"is {devices} x 1, but 2 processes were started"):
        h.run(h.recipe(tmp_path / "run", devices=devices))


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


def test_a_folder_with_a_run_is_not_overwritten(finished):
    with pytest.raises(UserError, match=r"holds a run already \(step-00000012.ckpt\); add --resume"):
        h.run(h.recipe(finished))


def test_resume_refuses_another_recipe(finished):
    changed = dataclasses.replace(h.recipe(finished, accumulate=2), seed=7)
    with pytest.raises(UserError, match=r"trainer.accumulate: 1 there, 2 here; seed: 0 there, 7 here"):
        h.run(changed, resume=True)


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
