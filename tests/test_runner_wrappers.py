"""``run_downstream`` and ``run_pretrain``: s3prl's runners, with their options, minus their tracebacks."""

from __future__ import annotations

import argparse
import builtins
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers_s3prl import python, write_corpus, write_phone_recognition, write_recipe, write_student

from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin import downstream_runner, pretrain_runner, stock
from s3prl_ekd.s3prl_plugin.options import Syntax
from s3prl_ekd.student.checkpoint import load_pickle_safely


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Corpus, downstream configuration, student, pretraining recipe."""
    root = tmp_path_factory.mktemp("place")
    write_corpus(root / "corpus")
    write_phone_recognition(root, root / "corpus")
    write_student(root / "student")
    write_recipe(root, root / "corpus" / "train")
    return root


@pytest.fixture
def here(place, tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_are_taken_apart_as_the_runner_would():
    syntax = Syntax(prog="x", values={"upstream": "-u", "override": "-o", "seed": ""}, flags={"auto_resume": "-a"})
    options = syntax.parse(["-ufbank", "--auto", "-o", "args.device='cpu'", "--see=3", "--new", "x"])
    assert options.given == {"upstream": "fbank", "auto_resume": True, "override": "args.device='cpu'", "seed": "3"}
    assert options.rest == ["--new", "x"]
    assert options.overrides("device")
    assert not options.overrides("upstream")
    del options.given["auto_resume"]
    options.given["seed"] = "-1"  # a value that looks like an option survives
    assert syntax.parse(options.argv()).given == options.given


@pytest.mark.parametrize("runner", [downstream_runner, pretrain_runner])
def test_every_option_of_the_stock_runner_is_known(runner, capsys):
    """Else its value would be taken for something else, or pass unchecked."""
    with pytest.raises(SystemExit) as caught:
        runner.run(["-h"])
    assert caught.value.code == 0
    words = {word.strip(",[]").partition("=")[0] for word in capsys.readouterr().out.split()}
    parser = runner.SYNTAX
    known = {f"--{name}" for name in (*parser.values, *parser.flags)}
    assert {word for word in words if word.startswith("--") and len(word) > 2} == known


# --- downstream -------------------------------------------------------------------------------------------------------


def test_train_resume_and_evaluate_in_one_process(place, here, caplog, capfd):
    isinstance_before, save_before, argv_before = builtins.isinstance, torch.save, list(sys.argv)
    common = ["-u", "ekd_student", "-k", str(place / "student"), "-d", "ctc", "-c", str(place / "pr.yaml"), "-n", "x"]
    downstream_runner.run(["-m", "train", *common])
    folder = here / "result/downstream/x"
    first = load_pickle_safely(folder / "states-2.ckpt")
    assert first["Step"] == 2
    assert first["Args"].device == "cpu"

    cut(folder / "states-2.ckpt")  # as if it had been killed while it wrote
    with caplog.at_level(logging.WARNING):
        downstream_runner.run(["-m", "train", *common, "-a", "-o", "config.runner.total_steps=3"])
    assert "states-2.ckpt: not a checkpoint, or a damaged one; going on from states-1.ckpt (step 1)" in caplog.text
    assert load_pickle_safely(folder / "states-3.ckpt")["Step"] == 3

    capfd.readouterr()
    downstream_runner.run(["-m", "evaluate", "-t", "dev", "-e", str(folder / "dev-best.ckpt")])
    assert "dev per: " in capfd.readouterr().out
    assert builtins.isinstance is isinstance_before  # s3prl replaces it
    assert torch.save is save_before
    assert sys.argv == argv_before


def test_bad_audio_in_a_worker_is_one_line(place, here):
    corpus = shutil.copytree(place / "corpus", here / "corpus")
    cut(corpus / "train/1/2/1-2-0002.flac")
    configuration = yaml.safe_load((place / "pr.yaml").read_text())
    configuration["downstream_expert"]["corpus"] |= {"path": str(corpus), "num_workers": 1}
    (here / "pr.yaml").write_text(yaml.safe_dump(configuration))
    with pytest.raises(UserError) as caught:
        downstream_runner.run(["-m", "train", "-u", "fbank", "-d", "ctc", "-c", "pr.yaml", "-p", "out"])
    assert stock.one_line(caught.value).startswith(f"{corpus}/train/1/2/1-2-0002.flac: cannot be read as audio")


DOWNSTREAM = "-m train -u fbank -d ctc -c {place}/pr.yaml -p out "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DOWNSTREAM + "-u ekd_student", "-u ekd_student needs -k"),
        (DOWNSTREAM + "-u ekd_student -k /no/student", "/no/student"),
        (DOWNSTREAM + "-u fbamk", "did you mean 'fbank'"),
        (DOWNSTREAM + "-u hubert_local -k no.pt", "-k no.pt: no such file"),
        (DOWNSTREAM + "-d ctx", "did you mean 'ctc'"),
        (DOWNSTREAM + "-c no.yaml", "-c no.yaml: no such file"),
        (DOWNSTREAM + "-c recipes/no.yaml", "no recipe 'no.yaml'"),
        (DOWNSTREAM + "-c {place}/config_model.yaml", "has no section 'runner'"),
        (DOWNSTREAM + "-g no.yaml", "-g no.yaml: no such file"),
        (DOWNSTREAM + "-i no.ckpt", "-i no.ckpt: no such file"),
        (DOWNSTREAM + "--local_rank 0", "on GPUs only"),
        (DOWNSTREAM + "--device cuda", "no GPU"),
        ("-m train -u fbank -d ctc -p out", "-c is missing"),
        ("-m train -u fbank -p out", "-d is missing"),
        ("-m train -d ctc -c {place}/pr.yaml -p out", "-u is missing"),
        ("-m evaluate -e no.ckpt", "-e no.ckpt: no such checkpoint"),
        ("-m evaluate -e {place}/corpus", "holds no states-"),
        ("-m evaluate -e {place}/pr.yaml", "not a checkpoint, or a damaged one"),
    ],
)
def test_mistakes_downstream(place, here, options, message):
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message) as caught:
        downstream_runner.run(options.format(place=place).split())
    assert "\n" not in str(caught.value)
    assert list(here.iterdir()) == []  # nothing half-written


def test_each_process_of_torchrun_gets_its_gpu(monkeypatch):
    monkeypatch.setattr(stock, "default_device", lambda: "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    options = downstream_runner.SYNTAX.parse([])
    downstream_runner._choose_device(options)
    assert options.argv() == ["--local_rank=1", "--device=cuda"]
    options = downstream_runner.SYNTAX.parse(["--local-rank=0"])  # as torch.distributed.launch spells it
    downstream_runner._choose_device(options)
    assert options.argv() == ["--local_rank=0", "--device=cuda"]


def test_unsafe_unpickling_of_an_old_torch_is_warned_of(monkeypatch, caplog):
    stock.warn_if_unpickled("a.ckpt")
    assert caplog.text == ""
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    stock.warn_if_unpickled("a.ckpt")
    assert "lets it run code" in caplog.text


def test_an_upstream_of_the_hub_works_and_is_warned_of(place, here, caplog, monkeypatch):
    """``--hub huggingface``, which today's huggingface_hub breaks in three places."""
    snapshot = here / "hub/models--somebody--model/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "requirements.txt").write_text("torch\n")
    (snapshot / "expert.py").write_text(
        "import torch\n"
        "class UpstreamExpert(torch.nn.Module):\n"
        "    def __init__(self, ckpt, **kwargs):\n"
        "        super().__init__()\n"
        "        self.ckpt = ckpt\n"
        "    def get_downsample_rates(self, key):\n"
        "        return 320\n"
        "    def forward(self, wavs):\n"
        "        assert self.ckpt.endswith('model.pt')\n"
        "        return {'hidden_states': [torch.ones(len(wavs), max(map(len, wavs)) // 320, 4)] * 2}\n"
    )
    refs = here / "hub/models--somebody--model/refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    common = ["-d", "ctc", "-c", str(place / "pr.yaml"), "-p", "out", "-o", "config.runner.eval_step=9"]
    with caplog.at_level(logging.WARNING):
        downstream_runner.run(["-m", "train", "-u", "somebody/model", "--hub", "huggingface", *common])
    assert "runs the code (expert.py) of the repository somebody/model" in caplog.text
    assert (here / "out/states-2.ckpt").is_file()


# --- pretraining ------------------------------------------------------------------------------------------------------


def test_pretraining_resumes_the_furthest_checkpoint_with_new_options(place, here, caplog):
    """From another folder, with another end; s3prl itself would take states-3 for the newest, and the old end."""
    pretrain_runner.run(["-u", "ekd_student", "-g", str(place / "config_model.yaml"), "-p", "run"])
    folder = here / "run"
    assert {"config_model.yaml", "config_runner.yaml", "states-3.ckpt"} <= set(os.listdir(folder))
    (last,) = folder.glob("states-epoch-*.ckpt")
    assert load_pickle_safely(last)["Args"].expname == "run"  # -p alone is enough
    shutil.copytree(folder, here / "copy")

    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    pretrain_runner.run(["-e", "../run", "-o", "config.runner.total_steps=6"])
    assert list(elsewhere.iterdir()) == []  # it goes on where the checkpoint is
    states = load_pickle_safely(folder / last.name)
    assert states["Step"] == 5  # s3prl saves it one short
    assert states["Config"]["runner"]["total_steps"] == 6
    assert states["Optimizer"]["state"][0]["step"] == 7  # and so it repeats one
    assert states["Optimizer"]["param_groups"][0]["schedule"].t_total == 6  # the learning rate follows the new end

    cut(here / "copy" / last.name)
    with caplog.at_level(logging.WARNING):
        assert stock.newest_checkpoint(str(here / "copy"), "-e") == str(here / "copy/states-3.ckpt")
    assert f"{last.name}: not a checkpoint, or a damaged one" in caplog.text
    assert "going on from states-3.ckpt (step 2)" in caplog.text


PRETRAIN = "-u ekd_student -g {place}/config_model.yaml -p out "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-u ekd_student -n x", "-g and -c are missing: .*recipes/mini"),
        ("-u ekd_student -g {place}/config_model.yaml", "-n NAME .* or -p FOLDER"),
        ("-g {place}/config_model.yaml -n x", "-u is missing"),
        ("-a", "-a needs the experiment"),
        (PRETRAIN + "-u ekd_studnt", "did you mean 'ekd_student'"),
        ("-u apc -n x", "-g and -c are missing: .* no YAML for apc"),
        (PRETRAIN + "-g {place}/student/config.json", "-c is missing, and beside"),
        (PRETRAIN + "-g no.yaml", "-g no.yaml: no such file"),
        (PRETRAIN + "-g {place}/config_runner.yaml", "unknown key 'optimizer'"),
        (PRETRAIN + "-c {place}/config_model.yaml", "has no section 'runner'"),
        (PRETRAIN + "--device cuda", "no GPU"),
        (PRETRAIN + "--multi_gpu", "s3prl-ekd distill"),
        (PRETRAIN + "-o config.runner.total_steps=1", "must be below runner.total_steps 1"),
        (PRETRAIN + "-o config.runner.totl_steps=9", "did you mean 'total_steps'"),
        (PRETRAIN + "-o config.optimizer.name=Adamm", "did you mean 'Adam'"),
        (PRETRAIN + "-o config.scheduler.name=linear", "scheduler.name: unknown value 'linear'"),
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


def test_a_checkpoint_of_another_kind_is_no_start(here):
    torch.save({"Downstream": {}, "Args": argparse.Namespace()}, here / "states-1.ckpt")
    with pytest.raises(UserError, match="a downstream checkpoint"):
        stock.newest_checkpoint("states-1.ckpt", "-e")
    with pytest.raises(UserError, match=r"no readable checkpoint: .*a downstream checkpoint"):
        stock.newest_checkpoint(str(here), "-e")


def test_a_folder_with_something_of_worth_is_kept(here):
    settings, result = ("config_2026.yaml", "events.out.tfevents.1"), ("states-1.ckpt",)

    def fail_with(*files: str) -> None:
        with stock.forget_new_folder("run"):
            Path("run").mkdir(exist_ok=True)
            for name in files:
                Path("run", name).touch()
            raise UserError("late")

    for files, kept in ((settings, False), (settings + result, True)):
        with pytest.raises(UserError, match="late"):
            fail_with(*files)
        assert Path("run").exists() == kept
    Path("run/states-1.ckpt").unlink()
    with pytest.raises(UserError, match="late"):
        fail_with(*settings)
    assert Path("run").exists()  # it was there before


# --- as commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["s3prl_ekd.run_downstream", "s3prl_ekd.run_pretrain"])
def test_commands_answer_a_mistake_with_one_line_and_status_2(here, module):
    done = python("-m", module, *(["-m", "evaluate"] if "downstream" in module else []), "-e", "no.ckpt")
    assert done.returncode == 2
    error = f"python -m {module}: error: -e no.ckpt: no such checkpoint file or folder (working folder: {here})\n"
    assert done.stderr == error
    assert done.stdout == ""
