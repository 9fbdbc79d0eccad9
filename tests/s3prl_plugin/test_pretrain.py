"""``run_pretrain``: s3prl's script from any folder, going on with new options, minus its tracebacks."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers_pruned import pruned_student

from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.runners import checkpoints
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner
from s3prl_ekd.student.folder import load_student, save_student
from s3prl_ekd.upstream import ekd_student
from s3prl_ekd.weights.pickles import load_pickle_safely


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_pretraining_resumes_the_furthest_checkpoint_with_new_options(place, here, caplog):
    """From another folder, with another end; s3prl itself would take states-3 for the newest, and the old end."""
    pretrain_runner.run(["-u", "ekd_student", "-g", str(place / "config_model.yaml"), "-p", "run"])
    folder = here / "run"
    assert {"config_model.yaml", "config_runner.yaml", "states-3.ckpt"} <= set(os.listdir(folder))
    (last,) = folder.glob("states-epoch-*.ckpt")
    assert load_pickle_safely(last)["Args"].expname == "run"  # -p alone is enough
    shutil.copytree(folder, here / "copy")

    with pytest.raises(UserError, match="run: holds a run already; add -a to go on"):
        pretrain_runner.run(["-u", "ekd_student", "-g", str(place / "config_model.yaml"), "-p", "run"])
    before = last.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        pretrain_runner.run(["-p", "run", "-a", "-g", str(place / "config_model.yaml")])
    assert "finished, nothing to do" in caplog.text
    assert last.stat().st_mtime_ns == before
    assert "the run goes on as it was" not in caplog.text
    recipe = yaml.safe_load((place / "config_model.yaml").read_text())
    recipe["student"]["num_hidden_layers"] = 2
    (here / "other.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=r"student.num_hidden_layers is 2, the run's is 1; a run keeps its recipe"):
        pretrain_runner.run(["-p", "run", "-a", "-g", "other.yaml"])
    with pytest.raises(UserError, match=r"-e run/.* with -o: .*unexpected keyword argument 'lrr'"):
        pretrain_runner.run(["-p", "run", "-a", "-o", "config.optimizer.lrr=1"])
    runner = yaml.safe_load((place / "config_runner.yaml").read_text())
    runner["optimizer"]["lr"] = 0.5
    runner["runner"]["total_steps"] = 6
    (here / "edited.yaml").write_text(yaml.safe_dump(runner))

    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    pretrain_runner.run(["-e", "../run", "-o", "config.runner.total_steps=6", "-c", "../edited.yaml"])
    assert "edited.yaml: optimizer.lr is 0.5, the run's is 0.001; the run goes on as it was: use -o" in caplog.text
    assert list(elsewhere.iterdir()) == []  # it goes on where the checkpoint is
    states = load_pickle_safely(folder / last.name)
    assert states["Step"] == 5  # s3prl saves it one short
    assert states["Config"]["runner"]["total_steps"] == 6
    assert states["Optimizer"]["state"][0]["step"] == 7  # and so it repeats one
    assert states["Optimizer"]["param_groups"][0]["schedule"].t_total == 6  # the learning rate follows the new end

    cut(here / "copy" / last.name)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_checkpoint(str(here / "copy"), "-e") == str(here / "copy/states-3.ckpt")
    assert f"{last.name}: not a checkpoint, or a damaged one" in caplog.text
    assert "going on from states-3.ckpt (step 2)" in caplog.text


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_student_whose_layers_differ_in_size_teaches_its_copy(place, here, kind):
    """One layer has no attention heads, one no inner units; the run is stopped and goes on."""
    origin = pruned_student(kind)
    save_student(here / "pruned", origin)
    recipe = {"student": {"copy": "pruned"}, "teachers": [{"name": "pruned", "student": "pruned", "layers": [1, 3]}]}
    (here / "config_model.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copy(place / "config_runner.yaml", here)
    options = ["-g", "config_model.yaml", "-p", "run"]
    pretrain_runner.run(["-u", "ekd_student", *options])
    pretrain_runner.run([*options, "-a", "-o", "config.runner.total_steps=6"])
    (last,) = (here / "run").glob("states-epoch-*.ckpt")
    assert load_pickle_safely(last)["Optimizer"]["state"][0]["step"] == 7
    student = load_student(last)
    assert student.config.num_attention_heads == origin.config.num_attention_heads == (2, 0, 1)
    bias = "encoder.layers.1.attention.out_proj.bias"
    assert not torch.equal(student.state_dict()[bias], origin.state_dict()[bias])
    with torch.no_grad():
        assert ekd_student(last)([torch.zeros(8000)])["hidden_states"][-1].isfinite().all()


PRETRAIN = "-u ekd_student -g {place}/config_model.yaml -p out "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PRETRAIN + "-o config.optimizer.lr=null", "optimizer or scheduler: TypeError: .* 'NoneType'"),
        (PRETRAIN + "-g mini/confg_model.yaml", "did you mean 'mini/config_model.yaml'"),
        ("-u ekd_student -n x", "-g and -c are missing: .*recipes/mini"),
        ("-u ekd_student -g {place}/config_model.yaml", "-n NAME .* or -p FOLDER"),
        ("-g {place}/config_model.yaml -n x", "-u is missing"),
        ("-a", "-a needs the experiment"),
        (PRETRAIN + "-u ekd_studnt", "did you mean 'ekd_student'"),
        ("-u apc -n x", "-g and -c are missing: .* no YAML for apc"),
        (PRETRAIN + "-g {place}/student/config.json", "-c is missing, and beside"),
        (PRETRAIN + "-g no.yaml", "-g no.yaml: no such file"),
        (PRETRAIN + "-g {place}/config_runner.yaml", "unknown key 'optimizer'"),
        (PRETRAIN + "-c {place}/config_model.yaml", "unknown section 'student'"),
        (PRETRAIN + "--device cuda", "no GPU"),
        (PRETRAIN + "--multi_gpu", "s3prl-ekd distill"),
        (PRETRAIN + "-o config.runner.total_steps=1", "AssertionError .*pretrain/runner.py, line .*'log_step'"),
        (PRETRAIN + "-o config.runner.totl_steps=9", "did you mean 'total_steps'"),
        (PRETRAIN + "-o config.runner.gradient_clipping=0", "gradient_clipping: expected more than 0"),
        (PRETRAIN + "-o config.runner.gradient_clipping=float('inf')", "gradient_clipping: expected a finite number"),
        (PRETRAIN + "-o config.optimizer.warmup_portion=0.1", "unexpected keyword argument 'warmup_portion'"),
        (PRETRAIN + "-o config.optimizer.warmup_proportion=2", "ValueError: Invalid warmup"),
        (PRETRAIN + "-o total_steps", "-o total_steps: expected args.KEY=VALUE"),
        (PRETRAIN + "-o config.optimizer.name=Adamm", "NameError: name 'get_Adamm'"),
        (PRETRAIN + "-o config.scheduler.name=linear", "NameError: name 'get_linear'"),
        (PRETRAIN + "-o config.pretrain_expert.datarc.audio_folder=/none", "/none: no such folder"),
        ("-e no.ckpt", "-e no.ckpt: no such checkpoint"),
        ("-e {place}/student/model.safetensors", "not a checkpoint"),
    ],
)
def test_mistakes_in_pretraining(place, here, options, message):
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message) as caught:
        pretrain_runner.run(options.format(place=place).split())
    assert "\n" not in str(caught.value)
    assert not (here / "out").exists()


def test_pretraining_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="s3prl-ekd distill"):
        pretrain_runner.run(["-u", "ekd_student"])
