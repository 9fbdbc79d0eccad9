"""s3prl's road: stock run_pretrain trains our recipe, is killed and goes on; what the expert promises the runner."""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from helpers_models import speech_like
from helpers_teachers import SIZES, tiny_model

from s3prl_ekd import assets, cli
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import PretrainDataConfig, PretrainDataset, PretrainLoader
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.pretrain_expert import UpstreamPretrainExpert
from s3prl_ekd.student.folder import load_student, load_student_and_heads
from s3prl_ekd.teachers import load_teachers

# Runs s3prl's runner as the user does, and notes what each forward pass of the Distiller gets and gives.
DRIVER = """
import json, sys, torch
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner

forward, trace = Distiller.forward, open(sys.argv[1], "a", buffering=1)
def noting(self, batch, **options):
    output = forward(self, batch, **options)
    note = {
        "utterances": batch.utterances,
        "sums": [batch.clean.double().sum().item(), batch.distorted.double().sum().item()],
        "loss": output.loss.item(),
        "student_trains": self.student.training,
        "teachers_train": any(m.training for t in self.teachers for m in t.module.modules()),
    }
    trace.write(json.dumps(note) + "\\n")
    return output

Distiller.forward = noting
torch.set_num_threads(1)
sys.exit(pretrain_runner.main(sys.argv[2:]))
"""
STEPS, SAVE = 45, 10


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Twelve utterances with s3prl's list, two tiny teachers that have dropout, the two YAML files."""
    root = tmp_path_factory.mktemp("road")
    rows = [",file_path,length,label"]
    for i in range(13):
        samples, name = 5000 + 300 * i, f"{i % 3}/{i}.wav"
        (root / "speech" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "speech" / name, speech_like(samples, seed=i).numpy(), 16000)
        rows.append(f"{i},{name},{samples},X")
    (root / "train.csv").write_text("\n".join(rows))
    for seed, kind in enumerate(("hubert", "wavlm")):
        tiny_model(kind, seed=seed).save_pretrained(root / kind)
    no_dropout = {f"{name}_dropout": 0.0 for name in ("hidden", "attention", "activation")}
    recipe = {
        "student": SIZES | no_dropout | {"conv_dim": [16] * 7, "num_hidden_layers": 2, "initialize_from": "hubert"},
        "teachers": [
            {"name": "hubert", "transformers": "hubert", "layers": [1, 3]},
            {"name": "wavlm", "transformers": "wavlm", "layers": [2, 3]},
        ],
        "distortion": {"gaussian_noise": {"probability": 0.5}},
    }
    runner = yaml.safe_load(assets.recipe("mini/config_runner.yaml").read_text())
    runner["runner"] |= {"total_steps": STEPS, "save_step": SAVE, "log_step": 5, "max_keep": 9}
    runner["scheduler"]["num_warmup_steps"] = 5
    runner["pretrain_expert"]["datarc"] |= {
        "train_batch_size": 2,
        "max_timestep": 7000,
        "libri_root": "speech",
        "file_path": ".",
        "sets": ["train"],
    }
    (root / "config_model.yaml").write_text(yaml.safe_dump(recipe))
    (root / "config_runner.yaml").write_text(yaml.safe_dump(runner))
    (root / "driver.py").write_text(DRIVER)
    return root


@pytest.fixture(scope="module")
def recipe(workplace) -> DistillConfig:
    return DistillConfig.from_yaml(workplace / "config_model.yaml")


@pytest.fixture
def in_workplace(workplace, monkeypatch) -> Path:
    """The recipe's paths are relative to the working folder."""
    monkeypatch.chdir(workplace)
    return workplace


def datarc(workplace: Path, **extra) -> dict:
    runner = yaml.safe_load((workplace / "config_runner.yaml").read_text())
    return runner["pretrain_expert"]["datarc"] | {"num_workers": 0} | extra


def start(workplace: Path, trace: str, log: str, *extra: str) -> subprocess.Popen:
    command = [sys.executable, "driver.py", trace, "-u", "ekd_student", "-n", "test", *extra]
    return subprocess.Popen(
        command,
        cwd=workplace,
        stdout=(workplace / log).open("w"),
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )


def notes(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load_states(path: Path) -> dict:
    """As anybody can: no code of ours, no code from the file."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def road(workplace) -> dict:
    """Train, kill -9 after a checkpoint, go on with -a to the end."""
    experiment = workplace / "result/pretrain/test"
    yamls = ("-g", "config_model.yaml", "-c", "config_runner.yaml")
    process = start(workplace, "first.jsonl", "first.log", *yamls)
    deadline = time.monotonic() + 120
    while not (experiment / f"states-{SAVE}.ckpt").exists():
        assert process.poll() is None, (workplace / "first.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = max(experiment.glob("states-*.ckpt"), key=lambda path: int(path.stem.split("-")[-1]))
    states = load_states(kept)
    override = "config.pretrain_expert.datarc.num_workers=0"
    resumed = start(workplace, "second.jsonl", "second.log", "-a", "-o", override)
    assert resumed.wait(120) == 0, (workplace / "second.log").read_text()
    return {
        "first": notes(workplace / "first.jsonl"),
        "second": notes(workplace / "second.jsonl"),
        "log": (workplace / "second.log").read_text(),
        "states": states,
        "step": states["Step"] + 1,  # s3prl saves it one short
        "last": next(experiment.glob("states-epoch-*.ckpt")),
    }


@pytest.fixture
def expected(in_workplace, recipe) -> list:
    """The batches of an undisturbed run."""
    loader = PretrainLoader(PretrainDataset(PretrainDataConfig.from_mapping(datarc(in_workplace)), recipe.distortion))
    return [batch for _ in range(8) for batch in loader]


def test_every_step_has_the_batch_of_an_undisturbed_run(road, expected):
    assert road["step"] % SAVE == 0
    assert len(road["first"]) >= road["step"]
    assert len(road["second"]) == STEPS - road["step"] + 1  # one step is repeated
    for trace, first_batch in ((road["first"], 0), (road["second"], road["step"] - 1)):
        for note, batch in zip(trace, expected[first_batch:], strict=False):
            assert note["utterances"] == list(batch.utterances)
            assert note["sums"] == [batch.clean.double().sum().item(), batch.distorted.double().sum().item()]
    assert any(note["sums"][0] != note["sums"][1] for note in road["second"])


def test_training_goes_on_from_the_saved_weights(road, expected, recipe):
    distiller = Distiller(recipe, load_teachers(recipe)).train()
    fresh = distiller(expected[road["step"] - 1]).loss.item()
    distiller.load_state_dict(road["states"]["EKD_Student"])
    saved = distiller(expected[road["step"] - 1]).loss.item()
    assert road["second"][0]["loss"] == pytest.approx(saved, abs=1e-5)
    assert abs(saved - fresh) > 0.01

    last = load_states(road["last"])
    assert last["Step"] == STEPS - 1
    # Optimizer and learning rate went on too: they count the repeated step.
    assert last["Optimizer"]["state"][0]["step"] == STEPS + 1
    assert last["Scheduler"]["last_epoch"] == STEPS + 1


def test_teachers_stay_in_eval_and_out_of_everything(road, in_workplace, recipe):
    trace = road["first"] + road["second"]
    assert all(note["student_trains"] for note in trace)
    assert not any(note["teachers_train"] for note in trace)
    distiller = Distiller(recipe, load_teachers(recipe))
    state = load_states(road["last"])["EKD_Student"]
    assert state.keys() == distiller.state_dict().keys()
    assert all(name.split(".")[0] in {"student", "heads"} for name in state)
    groups = load_states(road["last"])["Optimizer"]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == len(list(distiller.parameters()))


def test_the_checkpoint_is_plain_and_read_as_a_student(road, workplace, recipe):
    states = load_states(road["last"])
    assert states["Upstream_Config"] == recipe.to_mapping()
    assert states["Config"]["runner"] == yaml.safe_load((workplace / "config_runner.yaml").read_text())["runner"]
    student = load_student(road["last"])
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, states["EKD_Student"][f"student.{name}"])


def test_a_student_is_exported_from_the_run(road, tmp_path, capsys):
    run = Path(road["last"]).parent
    assert cli.main(["export-checkpoint", str(run), str(tmp_path / "student")]) == 0
    assert str(road["last"]) in capsys.readouterr().out
    assert load_student(tmp_path / "student").state_dict().keys() == load_student(road["last"]).state_dict().keys()
    with pytest.raises(UserError, match="s3prl-ekd export "):
        load_student(run)


def test_the_log_tells_every_teacher_and_layer(road):
    for name in ("hubert/1", "hubert/3", "wavlm/2", "wavlm/3"):
        assert f"l1/{name}" in road["log"]
        assert f"cosine/{name}" in road["log"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("worker", "a process that reads has ended"),
        pytest.param("speech", "batches in a row hold no usable recording", marks=pytest.mark.slow),
    ],
)
def test_what_ends_in_the_middle_of_a_run_is_said_in_one_line(what, says, workplace, tmp_path):
    """All recordings vanish, or a worker is killed: the command ends soon, with status 2 and without a traceback."""
    for name in ("config_model.yaml", "driver.py", "train.csv"):
        shutil.copy(workplace / name, tmp_path)
    for name in ("speech", "hubert", "wavlm"):
        shutil.copytree(workplace / name, tmp_path / name)
    runner = yaml.safe_load((workplace / "config_runner.yaml").read_text())
    runner["runner"] |= {"total_steps": 10_000, "save_step": 9_000}
    runner["pretrain_expert"]["datarc"]["num_workers"] = 1
    (tmp_path / "config_runner.yaml").write_text(yaml.safe_dump(runner))
    process = start(tmp_path, "trace", "log", "-g", "config_model.yaml", "-c", "config_runner.yaml")
    deadline = time.monotonic() + 120
    while not (tmp_path / "trace").exists() or len((tmp_path / "trace").read_text().splitlines()) < 3:
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if what == "speech":
        shutil.rmtree(tmp_path / "speech")
    else:
        (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
    assert process.wait(120) == 2
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert sum(says in line for line in log.splitlines()) == 1
    assert not list(tmp_path.glob("result/**/states-*.ckpt"))


# --- the expert by itself ---------------------------------------------------------------------------------------------


def expert(workplace: Path, recipe: DistillConfig, **extra) -> UpstreamPretrainExpert:
    return UpstreamPretrainExpert(datarc(workplace, **extra), recipe.to_mapping(), "cpu", False)


def test_multi_gpu_and_mistakes_are_refused(in_workplace, recipe):
    with pytest.raises(UserError, match=r"multi_gpu.*s3prl-ekd distill"):
        UpstreamPretrainExpert(datarc(in_workplace), "config_model.yaml", "cuda", True)
    with pytest.raises(UserError, match=r"pretrain_expert\.datarc\.libri_rot.*did you mean 'libri_root'"):
        expert(in_workplace, recipe, libri_rot="x")
    with pytest.raises(UserError, match=r"Upstream_Config\.teacher.*did you mean 'teachers'"):
        UpstreamPretrainExpert(datarc(in_workplace), {"teacher": []}, "cpu")
    with pytest.raises(UserError, match=r"missing\.yaml"):
        UpstreamPretrainExpert(datarc(in_workplace), "missing.yaml", "cpu")


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        (
            {"layers": {"clusters": 2}},
            "its groups of layers have not been found yet; s3prl-ekd cluster-layers writes them",
        ),
        ({"principal_components": 3}, "found on a run's own data, which s3prl-ekd distill does; leave them out here"),
    ],
)
def test_what_is_found_on_a_runs_data_is_refused(teacher, says, in_workplace, recipe, monkeypatch):
    monkeypatch.setattr(f"{UpstreamPretrainExpert.__module__}.load_teachers", None)
    mapping = recipe.to_mapping()
    mapping["teachers"] = [one | teacher for one in mapping["teachers"]]
    with pytest.raises(UserError, match=says):
        expert(in_workplace, DistillConfig.from_mapping(mapping))


def test_a_checkpoint_of_another_kind_is_named(in_workplace, recipe):
    with pytest.raises(UserError, match="run_downstream"):
        expert(in_workplace, recipe).load_model({"Downstream": {}, "Step": 3})


def test_groups_taps_terms_and_learnt_weights_on_this_road(in_workplace, recipe, tmp_path):
    """The expert's loss is the Distiller's, and its checkpoint says which head each tap uses."""
    mapping = recipe.to_mapping()
    for teacher in mapping["teachers"]:
        teacher["layers"] = [0, [1, 2], 3]
    mapping["heads"] = {"kind": "linear", "share": [[1, 2]], "from": [0, 1, 2]}
    terms = [{"kind": kind} for kind in ("l2", "gram", "correlation")]
    mapping["objective"] = {"losses": terms, "learnt_weights": {"floor": 0.2}}
    config = DistillConfig.from_mapping(mapping)
    ours = expert(in_workplace, config)
    batch = next(iter(ours.get_train_dataloader()))
    loss, records = ours(batch, records=collections.defaultdict(list), global_step=0)
    other = Distiller(config, load_teachers(config))
    other.load_state_dict(ours.model.state_dict())
    torch.testing.assert_close(loss, other(batch).loss)
    assert {"gram/hubert/1-2", "correlation/wavlm/0", "weight/wavlm/1-2"} < records.keys()
    torch.save(ours.add_state_to_save({}), tmp_path / "states-1.ckpt")
    _, heads = load_student_and_heads(tmp_path / "states-1.ckpt")
    assert (heads.uses, heads.taps[1], heads.kind) == ((0, 1, 1, 2, 3, 3), (1, "hubert/1-2"), "linear")


def test_accumulated_batches_count_as_consumed(in_workplace, recipe, expected):
    ours = expert(in_workplace, recipe)
    states = ours.add_state_to_save({"Step": 4, "Config": {"runner": {"gradient_accumulate_steps": 3}}})
    ours.load_model(states)
    assert next(iter(ours.get_train_dataloader())).utterances == expected[12].utterances


class Writer(dict):
    """Stands for TensorBoard's."""

    def add_scalar(self, name, value, global_step):
        self[name] = value


def test_records_are_means_since_the_last_log(in_workplace, recipe, expected, caplog):
    ours, records, losses = expert(in_workplace, recipe), collections.defaultdict(list), []
    for step in (1, 2, 3):
        loss, records = ours(expected[step], records=records, global_step=step, log_step=3)
        losses.append(loss.item())
        assert all(isinstance(value, torch.Tensor) for values in records.values() for value in values)  # none awaited
    writer = Writer()
    with caplog.at_level(logging.INFO):
        ours.log_records(records=records, logger=writer, prefix="ekd_student/train-", global_step=3)
    assert writer["ekd_student/train-mean_loss"] == pytest.approx(sum(losses) / 3)
    assert "ekd_student/train-cosine/wavlm/3" in writer
    assert sum(message.startswith("step 3: ") for message in caplog.messages) == 1
    ours.log_records(records=collections.defaultdict(list), logger=Writer(), prefix="", global_step=4)


def test_a_loss_that_is_not_finite_names_its_utterances(in_workplace, recipe, expected, caplog):
    ours = expert(in_workplace, recipe)
    with torch.no_grad():
        ours.model.heads.state_dict()[next(iter(ours.model.heads.state_dict()))].fill_(torch.nan)
    with caplog.at_level(logging.ERROR):
        for step in range(1, 21):
            ours(expected[0], records=collections.defaultdict(list), global_step=step, log_step=99)
            if step < 20:
                ours.on_before_zero_grad()
        with pytest.raises(UserError, match=r"not been finite for 20 steps"):
            ours.on_before_zero_grad()
    with pytest.raises(UserError, match=r"no step has learnt anything, .* not finite in all 20; no checkpoint is"):
        ours.add_state_to_save({})
    assert len(caplog.messages) == 20
    assert "at step 1; utterances: " in caplog.messages[0]
    assert all(name in caplog.messages[0] for name in expected[0].utterances)


# --- the recipes ------------------------------------------------------------------------------------------------------


def test_packaged_recipes_hold_the_published_settings():
    aggregations = {
        "mini": "separate-heads",
        "ls960_ekd_average": "layerwise-average",
        "ls960_ekd_concatenation": "layerwise-concatenation",
        "ls960_ekd_separate_heads": "separate-heads",
        "ls960_distilhubert": "separate-heads",
    }
    for name, aggregation in aggregations.items():
        model = DistillConfig.from_yaml(assets.recipe(f"{name}/config_model.yaml"))
        runner = yaml.safe_load(assets.recipe(f"{name}/config_runner.yaml").read_text())
        data = PretrainDataConfig.from_mapping(runner["pretrain_expert"]["datarc"])
        assert model.objective.aggregation == aggregation
        assert len(model.teachers) == (1 if name == "ls960_distilhubert" else 3)
        assert runner["scheduler"]["num_warmup_steps"] == round(0.07 * runner["runner"]["total_steps"])
        assert (runner["optimizer"]["betas"], runner["runner"]["gradient_clipping"]) == ([0.9, 0.98], 5.0)
        assert bool(model.distortion.active) is (name != "ls960_distilhubert")
        if name == "mini":
            continue
        assert all(teacher.layers == (4, 8, 12) for teacher in model.teachers)
        assert (data.train_batch_size, data.max_crop_samples) == (24, 250_000)
        assert (runner["runner"]["total_steps"], runner["optimizer"]["lr"]) == (200_000, 2e-4)


def test_a_copy_is_in_its_checkpoint(in_workplace, tmp_path):
    """The recipe says only of whom it is a copy; the checkpoint is read as that student."""
    recipe = yaml.safe_load((in_workplace / "config_model.yaml").read_text()) | {"student": {"copy": "wavlm"}}
    expert = UpstreamPretrainExpert(datarc(in_workplace), recipe, "cpu", False)
    torch.save(expert.add_state_to_save({"Step": 1}), tmp_path / "states-1.ckpt")
    student = load_student(tmp_path / "states-1.ckpt")
    assert student.config.kind == "wavlm"
    assert student.config == expert.model.student.config
    resumed = UpstreamPretrainExpert(datarc(in_workplace), recipe, "cpu", False)
    states = load_states(tmp_path / "states-1.ckpt") | {"Config": {"runner": {"gradient_accumulate_steps": 1}}}
    resumed.load_model(states)
    weights = resumed.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expert.model.state_dict().items())
