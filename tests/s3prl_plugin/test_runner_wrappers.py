"""``run_downstream`` and ``run_pretrain``: s3prl's runners, with their options, minus their tracebacks."""

from __future__ import annotations

import argparse
import builtins
import logging
import os
import shutil
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from helpers_models import TINY
from helpers_s3prl import python, write_corpus, write_phone_recognition, write_recipe, write_student

from s3prl_ekd import assets
from s3prl_ekd.audio import read as audio
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_plugin import hub
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner
from s3prl_ekd.s3prl_plugin.runners import downstream_config, override, support
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner
from s3prl_ekd.s3prl_plugin.runners.optimizer_config import check_training
from s3prl_ekd.s3prl_plugin.runners.options import Syntax
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.weights.pickles import load_pickle_safely


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
    known = {f"--{name}" for name in (*parser.values, *parser.flags)} | {"--trust-checkpoint"}  # ours
    assert {word for word in words if word.startswith("--") and len(word) > 2} == known


# --- downstream -------------------------------------------------------------------------------------------------------


def test_train_resume_and_evaluate_in_one_process(place, here, caplog, capfd):
    isinstance_before, save_before, argv_before = builtins.isinstance, torch.save, list(sys.argv)
    shutil.copytree(place / "student", here / "student")
    common = ["-u", "ekd_student", "-k", "student", "-d", "ctc", "-c", str(place / "pr.yaml"), "-n", "x"]
    downstream_runner.run(["-m", "train", *common])
    folder = here / "result/downstream/x"
    first = load_pickle_safely(folder / "states-2.ckpt")
    assert first["Step"] == 2
    assert first["Args"].device == "cpu"
    with pytest.raises(UserError, match=r"result/downstream/x: holds a run already; add -a"):
        downstream_runner.run(["-m", "train", *common])
    with pytest.raises(UserError, match=r"-o: unknown key 'runner.total_step'; did you mean 'total_steps'"):
        downstream_runner.run(["-m", "train", *common, "-a", "-o", "config.runner.total_step=3"])
    with pytest.raises(UserError, match=r"-o: runner.total_steps: expected a whole number of at least 1, found -3"):
        downstream_runner.run(["-m", "train", *common, "-a", "-o", "config.runner.total_steps=-3"])

    cut(folder / "states-2.ckpt")  # as if it had been killed while it wrote
    with caplog.at_level(logging.WARNING):
        downstream_runner.run(["-m", "train", *common, "-a", "-o", "config.runner.total_steps=3"])
    assert "states-2.ckpt: not a checkpoint, or a damaged one: incomplete: its end is missing" in caplog.text
    assert "; going on from states-1.ckpt (step 1)" in caplog.text
    assert "the run goes on as it was" not in caplog.text  # -c says the same as the checkpoint
    assert load_pickle_safely(folder / "states-3.ckpt")["Step"] == 3

    capfd.readouterr()
    best = ["-m", "evaluate", "-e", str(folder / "dev-best.ckpt")]
    downstream_runner.run([*best, "-t", "dev"])
    unmoved = capfd.readouterr().out
    assert "dev per: " in unmoved
    with pytest.raises(UserError, match=r"-t is missing: .* valid: dev, train"):
        downstream_runner.run(best)
    with_test = ["-o", "config.downstream_expert.corpus.test=['dev']"]
    downstream_runner.run([*best, *with_test])
    assert "test per: " in capfd.readouterr().out

    (here / "student").rename(here / "moved")
    with pytest.raises(UserError, match=r"^student: .*; if the upstream has been moved, say by -k where it is now"):
        downstream_runner.run([*best, "-t", "dev"])
    edited = yaml.safe_load((place / "pr.yaml").read_text())
    edited["optimizer"]["lr"] = 0.5
    (here / "edited.yaml").write_text(yaml.safe_dump(edited))
    os.rename(folder, here / "run")
    best = ["-m", "evaluate", "-e", "run/dev-best.ckpt", "-t", "dev"]
    downstream_runner.run([*best, "-k", "moved", "-c", "edited.yaml"])
    moved = capfd.readouterr().out
    assert [line for line in moved.splitlines() if "per: " in line] == [
        line for line in unmoved.splitlines() if "per: " in line
    ]
    assert "edited.yaml: optimizer.lr is 0.5, the run's is 0.01" in caplog.text
    assert not folder.exists()  # what it writes is beside the checkpoint
    other = {"num_hidden_layers": 1} | {key: value for key, value in TINY.items() if key != "num_hidden_layers"}
    save_student(here / "other", Student(StudentConfig.from_mapping(other)))
    with pytest.raises(UserError, match=r"run/dev-best.ckpt: its featurizer does not fit -u ekd_student -k other"):
        downstream_runner.run([*best, "-k", "other"])

    assert builtins.isinstance is isinstance_before  # s3prl replaces it
    assert torch.save is save_before
    assert sys.argv == argv_before


def write_as(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    """A WAV file of floats, whatever its name says."""
    soundfile.write(path, samples, rate, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("damage", "workers", "message"),
    [
        (cut, 1, "truncated"),
        (lambda path: path.write_bytes(b""), 0, "empty file"),
        (lambda path: write_as(path, np.full(8000, np.nan)), 0, "holds NaN or infinite samples"),
    ],
)
def test_bad_audio_is_one_line(place, here, damage, workers, message):
    corpus = shutil.copytree(place / "corpus", here / "corpus")
    damage(corpus / "train/1/2/1-2-0002.flac")
    with pytest.raises(UserError) as caught:
        train_on(corpus, place, here, workers)
    line = str(caught.value)
    assert line.startswith(f"{corpus}/train/1/2/1-2-0002.flac: ")
    assert message in line


def test_other_rates_and_channels_are_heard_as_speech(place, here, caplog):
    corpus = shutil.copytree(place / "corpus", here / "corpus")
    write_as(corpus / "train/1/2/1-2-0002.flac", 0.1 * np.random.default_rng(0).normal(size=(8000, 2)), 8000)
    train_on(corpus, place, here, workers=0)
    assert caplog.text.count("resampled to 16000 Hz") == 1
    assert caplog.text.count("are averaged") == 1


def train_on(corpus: Path, place: Path, here: Path, workers: int) -> None:
    configuration = yaml.safe_load((place / "pr.yaml").read_text())
    configuration["downstream_expert"]["corpus"] |= {"path": str(corpus), "num_workers": workers}
    (here / "pr.yaml").write_text(yaml.safe_dump(configuration))
    audio._said.cache_clear()
    downstream_runner.run(["-m", "train", "-u", "fbank", "-d", "ctc", "-c", "pr.yaml", "-p", "out"])


DOWNSTREAM = "-m train -u fbank -d ctc -c {place}/pr.yaml -p out "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DOWNSTREAM + "-u ekd_student", "-u ekd_student needs -k"),
        (DOWNSTREAM + "-u ekd_student -k /no/student", "/no/student"),
        (DOWNSTREAM + "-u fbamk", "did you mean 'fbank'"),
        (DOWNSTREAM + "-u hubert_local -k no.pt", "-k no.pt: no such file"),
        (DOWNSTREAM + "-u ekd_student_mini -s hidden_state", "-s hidden_state: .* did you mean 'hidden_states'"),
        (DOWNSTREAM + "-u ekd_student_mini -l 7", r"-l 7: ekd_student_mini has the layers 0 to \d in hidden_states"),
        (DOWNSTREAM + "-d ctx", "did you mean 'ctc'"),
        (DOWNSTREAM + "-d foo.bar", "-d foo.bar: s3prl has no such task"),
        (DOWNSTREAM + "-d asr -c recipes/downstream/mini/asr.yaml", "datarc.libri_root, .*: null; .* s3prl-ekd superb"),
        (DOWNSTREAM + "-o config.downstream_expert.text.vocab_file=None", "text.vocab_file: null; fill in the path"),
        (DOWNSTREAM + "-o config.runner.total_step=4", "-c .*pr.yaml with -o: .* did you mean 'total_steps'"),
        (DOWNSTREAM + "-o config.downstream_expert.model.projct_dim=4", "did you mean 'project_dim'"),
        (DOWNSTREAM + "-o config.optimizer.lr=fast", "optimizer.lr: expected a number, found 'fast'"),
        (DOWNSTREAM + "-o config.specaug.num_tme_mask=2", "did you mean 'num_time_mask'"),
        (DOWNSTREAM + "-o runner.total_steps=4", "-o runner.total_steps=4: expected args.KEY=VALUE"),
        (DOWNSTREAM + "-o config.downstream_expert.text.vocab_file=null", "text.vocab_file: null; fill in the path"),
        (DOWNSTREAM + "-o config.runner.save_step=0", "runner.save_step: expected a whole number of at least 1"),
        (DOWNSTREAM + "-o config.runner.gradient_clipping=0", "gradient_clipping: expected a positive number"),
        (DOWNSTREAM + "-o config.downstream_expert.corpus.num_workers=-1", "num_workers: expected .* at least 0"),
        (DOWNSTREAM + "-o config.optimizer.lr=1e308", "optimizer.lr: too large"),
        (DOWNSTREAM + "-c no.yaml", "-c no.yaml: no such file"),
        (
            DOWNSTREAM + "-c recipes/downstream/real/pt.yaml",
            "none of .* recipes; did you mean 'downstream/real/pr.yaml'",
        ),
        (DOWNSTREAM + "-c {place}/config_model.yaml", "has no section 'runner'"),
        (DOWNSTREAM + "-g no.yaml", "-g no.yaml: no such file"),
        (DOWNSTREAM + "-i no.ckpt", "-i no.ckpt: no such file"),
        (DOWNSTREAM + "--local_rank 0", "on GPUs only"),
        (DOWNSTREAM + "--device cuda", "no GPU"),
        (DOWNSTREAM + "-g qqq", "-g qqq: no such file"),
        ("-m train -u fbank -d ctc -p out", "-c is missing"),
        ("-m train -u fbank -d ctc -c {place}/pr.yaml", "-n NAME .* or -p FOLDER"),
        ("-m train -a -u fbank -d ctc -c {place}/pr.yaml", "-a needs the experiment"),
        ("-m evaluate -u fbank -d ctc -c {place}/pr.yaml -p out -t dve", "-t dve: .* did you mean 'dev'"),
        ("-m evaluate -u fbank -d ctc -c {place}/pr.yaml -p out -i {place}/pr.yaml", "not a checkpoint"),
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


@pytest.mark.parametrize("runner", [downstream_runner, pretrain_runner])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seed -1", "--seed -1: expected a whole number from 0 to 4294967295"),
        ("--seed 4294967296", "--seed 4294967296: expected a whole number"),
        ("--seed 1.5", "--seed 1.5: expected a whole number"),
        ("-o args.seed=-1", "-o args.seed=-1: expected a whole number"),
        ("--device gpu", "--device gpu: unknown; expected cpu, cuda,"),
        ("--device cuda:one", "--device cuda:one: unknown"),
        ("-o args.device=gpu", "--device gpu: unknown"),
        ("--expnam x --overide y", "no option --overide; did you mean '--override'"),
        ("-n x y", "'y' is one word too many"),
        ("--seed", "argument --seed: expected one argument; python -m .* --help shows how"),
        ("--exp x", "ambiguous option: --exp could match --expname, --expdir"),
    ],
)
def test_what_no_runner_can_have_is_said_before_s3prl_is_imported(runner, options, message, monkeypatch):
    def imported(*_):
        raise AssertionError("s3prl is imported")

    monkeypatch.setattr(hub, "register", imported)
    monkeypatch.setattr(pretrain_runner, "_top_level_modules", imported)
    with pytest.raises(UserError, match=message):
        runner.run(options.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "-m is missing: train or evaluate"),
        ("-m trian", "-m trian: unknown value; did you mean 'train'"),
        ("-m train --hub hf", "--hub hf: unknown value; .*valid: huggingface, torch"),
        ("-m train -l two", "-l two: expected a whole number"),
        ("-m train --local_rank -1", "--local_rank -1: expected a whole number from 0"),
        ("-m evaluate -e states-1.ckpt -i other.ckpt", "-i beside -e: .*leave one of the two out"),
        (
            "-m evaluate -e states-1.ckpt -u hubert",
            "-u hubert: the checkpoint has 'fbank', and a run keeps that; leave",
        ),
        ("-m evaluate -e states-1.ckpt -d asr", "-d asr: the checkpoint has 'ctc'"),
        ("-m evaluate -e states-1.ckpt -l 1", "-l 1: the checkpoint has None, .* -o args.upstream_layer_selection=1"),
        ("-m evaluate -e states-1.ckpt -f", "-f: the checkpoint has False"),
        ("-m evaluate -e states-1.ckpt --seed 1338", "--seed 1338: the checkpoint has 1337"),
        ("-m evaluate -e states-1.ckpt -g no.yaml", "-g no.yaml: no such file"),
        ("-m evaluate -e states-1.ckpt -c no.yaml", "-c no.yaml: no such file"),
    ],
)
def test_what_downstream_cannot_have_is_said_before_s3prl_is_imported(here, options, message, monkeypatch):
    stored = {"upstream": "fbank", "downstream": "ctc", "seed": 1337, "upstream_ckpt": None}
    stored |= {"upstream_layer_selection": None, "upstream_trainable": False}
    torch.save({"Step": 1, "Args": argparse.Namespace(**stored), "Downstream": {}, "Config": {}}, "states-1.ckpt")
    monkeypatch.setattr(hub, "register", lambda: pytest.fail("s3prl is imported"))
    with pytest.raises(UserError, match=message):
        downstream_runner.run(options.split())


def test_a_checkpoint_with_half_of_what_belongs_in_it(here):
    for states in (
        {"Step": 1, "Args": argparse.Namespace(), "Downstream": {}},
        {"Step": 1, "Args": argparse.Namespace(upstream=3, downstream="ctc"), "Downstream": {}, "Config": {}},
    ):
        torch.save(states, "states-1.ckpt")
        with pytest.raises(UserError, match="a damaged checkpoint"):
            downstream_runner.run(["-m", "evaluate", "-e", "states-1.ckpt"])
    for name in ("upstream", "downstream"):
        args = argparse.Namespace(upstream="fbank", downstream="ctc")
        torch.save({"Step": 1, "Args": args, "Downstream": {}, "Config": {}}, "states-1.ckpt")
        with pytest.raises(UserError, match=f"-o args.{name}: expected a name, found 7"):
            downstream_runner.run(["-m", "evaluate", "-e", "states-1.ckpt", "-o", f"args.{name}=7"])
    for states in ({"Step": "1", "Args": argparse.Namespace()}, {"Step": 1, "Args": 3}, {"Step": 1, "Args": {}}):
        torch.save(states, "states-1.ckpt")
        with pytest.raises(UserError, match="not a checkpoint that training can go on from"):
            pretrain_runner.run(["-e", "states-1.ckpt"])


@pytest.mark.parametrize(
    ("text", "python_text"),
    [
        ("config.a=null", "config.a=None"),
        ("config.a=NULL,,args.b=~", "config.a=None,,args.b=None"),
        ("config.a=true,,config.b=False,,config.c=false", "config.a=True,,config.b=False,,config.c=False"),
        ("config.a=[dev, null]", "config.a=['dev', None]"),
        ("config.a={name: Adam, on: true}", "config.a={'name': 'Adam', True: True}"),
        ("config.a=1e-3,,config.b=float('inf')", "config.a=1e-3,,config.b=float('inf')"),  # as s3prl reads them
        ("config.a=['x', 'y']", "config.a=['x', 'y']"),
        ("config.a=[unclosed", "config.a=[unclosed"),
        ("config.a=nullable,,config.b=", "config.a=nullable,,config.b="),
        ("total_steps", "total_steps"),
    ],
)
def test_overrides_may_be_written_as_in_yaml(text, python_text):
    assert override.in_python(text) == python_text


def test_overrides_reach_s3prl_as_values():
    text = override.in_python("config.a=null,,config.b=true,,config.c=1e-3,,config.d=[dev, test],,config.e=hubert")
    assert override.applied(text, {}) == {"a": None, "b": True, "c": 1e-3, "d": ["dev", "test"], "e": "hubert"}
    assert override.arguments("args.a=None,,args.b=x,,config.c=1,,args.d=1e3") == {"a": None, "b": "x", "d": 1000.0}


def test_only_the_whole_name_of_an_option_is_overridden():
    options = downstream_runner.SYNTAX.parse(["-o", "args.upstream_ckpt=x,,config.y=1"])
    assert options.overrides("upstream_ckpt")
    assert not options.overrides("upstream")


@pytest.mark.parametrize("runner", [downstream_runner, pretrain_runner])
def test_help_says_what_the_wrapper_adds(runner, capsys):
    with pytest.raises(SystemExit) as caught:
        runner.main(["--help"])
    assert caught.value.code == 0
    own = capsys.readouterr().out.partition(f"{runner.PROG} is s3prl's runner")[2]
    assert "--trust-checkpoint" in own
    assert "ekd_student" in own
    for example in own.replace("\\\n", " ").splitlines():
        if example.startswith("  python -m"):
            assert runner.SYNTAX.parse(example.split()[3:]).rest == []


def test_each_process_of_torchrun_gets_its_gpu(monkeypatch):
    monkeypatch.setattr(downstream_runner, "default_device", lambda: "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    options = downstream_runner.SYNTAX.parse([])
    downstream_runner._choose_device(options)
    assert options.argv() == ["--local_rank=1", "--device=cuda"]
    options = downstream_runner.SYNTAX.parse(["--local-rank=0"])  # as torch.distributed.launch spells it
    downstream_runner._choose_device(options)
    assert options.argv() == ["--local_rank=0", "--device=cuda"]


def test_an_upstream_that_runs_code_of_a_file_and_cannot_be_fetched(place, here, caplog, monkeypatch):
    hub.register()
    torch.save({}, here / "a.pt")

    def hubert_base(**kwargs):
        torch.load("a.pt", weights_only=False)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("s3prl.hub.hubert_base", hubert_base)
    options = [*DOWNSTREAM.format(place=place).split(), "-u", "hubert_base"]
    with pytest.raises(UserError, match=r"weights of hubert_base could not be fetched .* -u hubert_local -k FILE"):
        downstream_runner.run(options)
    assert "-u hubert_base unpickles a.pt, which can run code in it" in caplog.text
    assert [path.name for path in here.iterdir()] == ["a.pt"]


def test_an_upstream_whose_file_is_something_else(place, here, monkeypatch):
    hub.register()
    (here / "a.pt").write_text("<html></html>")
    monkeypatch.setattr("s3prl.hub.hubert_base", lambda **kwargs: torch.load("a.pt"))
    options = [*DOWNSTREAM.format(place=place).split(), "-u", "hubert_base"]
    with pytest.raises(UserError, match=r"-u hubert_base cannot be loaded \(a.pt: .*a web page \(HTML\)"):
        downstream_runner.run(options)


def test_the_other_runners_checkpoint_is_named(here):
    torch.save({"Step": 1, "Args": argparse.Namespace(), "Config": {}}, here / "states-1.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of run_downstream, but of run_pretrain"):
        downstream_runner.run(["-m", "evaluate", "-e", "states-1.ckpt"])
    torch.save({"Step": 1, "Args": argparse.Namespace(), "Downstream": {}}, here / "states-1.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of run_pretrain, but of run_downstream"):
        pretrain_runner.run(["-e", "states-1.ckpt"])


# --- configurations ---------------------------------------------------------------------------------------------------


def test_every_key_of_s3prls_own_configurations_is_known(caplog):
    """Some that the packaged ones lack."""
    decoder = {"decoder_type": "kenlm", "kenlm_model": "4-gram.arpa", "unk_weight": "-math.inf", "beam": 5}
    data = {"test-other": ["test-other"], "mine": ["a", "b"], "decoder_args": decoder}
    model = {"select": "Wav2Letter", "Wav2Letter": {"total_rate": 320}, "RNNs": {"module": "GRU"}}
    parts = {
        "asr": {"datarc": data, "modelrc": model},
        "ctc": {"corpus": {"train_speakers": ["Ivy"]}, "text": {"slots_file": "slots.txt"}, "model": model},
        "emotion": {"modelrc": {"DeepModel": {"model_type": "FCN", "hidden_dim": 80}}},
        "voxceleb1": {"modelrc": {"UtteranceLevel": {"pooling": "MeanPooling", "post_net": {"select": "FrameLevel"}}}},
    }
    for task, part in parts.items():
        downstream_config.check_keys(task, {"runner": {"fp16": True}, "specaug": {}, "downstream_expert": part})
    assert caplog.text == ""
    downstream_config.check_keys("asr", {"downstream_expert": {"datarc": {"anything": 1}}})
    assert "downstream_expert.datarc.anything: s3prl reads no such key" in caplog.text
    downstream_config.check_keys("another_task", {"runner": {"total_step": 1}})  # may be read there
    with pytest.raises(UserError, match=r"unknown key 'runner.steps'"):
        downstream_config.check_keys("emotion", {"runner": {"steps": 1}})


def test_what_is_evaluated_where_no_one_says(caplog):
    with caplog.at_level(logging.INFO):
        assert (
            downstream_config.default_split("asr", read_yaml(assets.recipe("downstream/real/asr.yaml"))) == "test-clean"
        )
    assert "evaluating test-clean; -t chooses another of train, dev-clean, test-clean" in caplog.text
    assert downstream_config.default_split("ctc", read_yaml(assets.recipe("downstream/real/pr.yaml"))) == "test"
    assert downstream_config.default_split("emotion", {}) == "test"


def test_optimizers_and_schedules_are_tried_before_anything_is_made():
    hub.register()
    from s3prl import optimizers, schedulers

    def check(optimizer: dict, scheduler: dict | None = None) -> None:
        config = {"runner": {"total_steps": 9}, "optimizer": optimizer, "scheduler": scheduler}
        check_training(config, optimizers, schedulers)

    adam = {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1e-3}
    linear = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 3}
    check(adam | {"betas": [0.9, 0.98], "fused": True, "weight_decay": 0}, linear)
    check({"name": "AdamW", "lr": 1e-4})
    check({"name": "AdamW_with_schedule", "lr": 2e-4, "warmup_proportion": 0.07, "betas": [0.9, 0.98], "eps": 1e-6})
    for optimizer, scheduler, message in (
        (adam | {"torch_optim_name": "Adem"}, None, "optimizer.torch_optim_name: .* did you mean 'Adam'"),
        (adam | {"beta": [0.9, 0.98]}, None, "unknown key 'optimizer.beta'; did you mean 'betas'"),
        (adam | {"betas": 0.9}, None, "optimizer.betas: expected 2 numbers"),
        (adam | {"lr": "1e-3"}, None, "optimizer.lr: expected a number, found '1e-3' .*1.0e-3"),
        (adam | {"lr": float("nan")}, None, "optimizer.lr: expected a finite number"),
        (adam | {"lr": -1.0}, None, "ValueError: Invalid learning rate"),
        (adam | {"lr": 1e308}, None, "optimizer.lr: too large for the weights, which are float32: 1e.308"),
        (adam | {"amsgrad": "no"}, None, "optimizer.amsgrad: expected true or false"),
        (adam | {"torch_optim_name": "LBFGS"}, None, "optimizer or scheduler: TypeError"),
        ({"name": "AdamW", "lr": 1e-4, "weight_decay": 0.1}, None, "unknown key 'optimizer.weight_decay'"),
        (adam, linear | {"warmup": 3}, "unknown key 'scheduler.warmup'; did you mean 'num_warmup_steps'"),
        (adam, {"name": "linear_schedule_with_warmup"}, "missing key 'scheduler.num_warmup_steps'"),
    ):
        with pytest.raises(UserError, match=message):
            check(optimizer, scheduler)


# --- upstreams --------------------------------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match=r"-e run/.* with -o: .*unknown key 'optimizer.lrr'"):
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
        assert support.newest_checkpoint(str(here / "copy"), "-e") == str(here / "copy/states-3.ckpt")
    assert f"{last.name}: not a checkpoint, or a damaged one" in caplog.text
    assert "going on from states-3.ckpt (step 2)" in caplog.text


PRETRAIN = "-u ekd_student -g {place}/config_model.yaml -p out "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PRETRAIN + "-o config.optimizer.lr=null", "optimizer.lr: expected a number, found None"),
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
        (PRETRAIN + "-c {place}/config_model.yaml", "has no section 'runner'"),
        (PRETRAIN + "--device cuda", "no GPU"),
        (PRETRAIN + "--multi_gpu", "s3prl-ekd distill"),
        (PRETRAIN + "-o config.runner.total_steps=1", "must be below runner.total_steps 1"),
        (PRETRAIN + "-o config.runner.totl_steps=9", "did you mean 'total_steps'"),
        (PRETRAIN + "-o config.runner.gradient_clipping=0", "gradient_clipping: expected more than 0"),
        (PRETRAIN + "-o config.runner.gradient_clipping=float('inf')", "gradient_clipping: expected a finite number"),
        (PRETRAIN + "-o config.optimizer.warmup_portion=0.1", "did you mean 'warmup_proportion'"),
        (PRETRAIN + "-o config.optimizer.warmup_proportion=2", "ValueError: Invalid warmup"),
        (PRETRAIN + "-o total_steps", "-o total_steps: expected args.KEY=VALUE"),
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
        support.newest_checkpoint("states-1.ckpt", "-e")
    with pytest.raises(UserError, match=r"no readable checkpoint: .*a downstream checkpoint"):
        support.newest_checkpoint(str(here), "-e")


def test_a_folder_with_something_of_worth_is_kept(here):
    settings, result = ("config_2026.yaml", "events.out.tfevents.1"), ("states-1.ckpt",)

    def fail_with(*files: str) -> None:
        with support.forget_new_folder("result/run"):
            Path("result/run").mkdir(parents=True, exist_ok=True)
            for name in files:
                Path("result/run", name).touch()
            raise KeyError("late")  # of s3prl, as likely as not

    for files, left in ((settings, []), (settings + result, [Path("result")])):
        with pytest.raises(KeyError, match="late"):
            fail_with(*files)
        assert list(Path().iterdir()) == left
    Path("result/run/states-1.ckpt").unlink()
    with pytest.raises(KeyError, match="late"):
        fail_with(*settings)
    assert Path("result/run").exists()  # it was there before


# --- as commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["s3prl_ekd.run_downstream", "s3prl_ekd.run_pretrain"])
def test_commands_answer_a_mistake_with_one_line_and_status_2(here, module):
    done = python("-m", module, *(["-m", "evaluate"] if "downstream" in module else []), "-e", "no.ckpt")
    assert done.returncode == 2
    error = f"python -m {module}: error: -e no.ckpt: no such checkpoint file or folder (working folder: {here})\n"
    assert done.stderr == error
    assert done.stdout == ""


def test_a_file_system_that_refuses_is_said_in_one_line(place, here, capsys):
    folder = f"{place}/pr.yaml/run"  # below a file
    for runner, options in ((downstream_runner, DOWNSTREAM), (pretrain_runner, PRETRAIN)):
        assert runner.main([*options.format(place=place).split(), "-p", folder]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"{runner.PROG}: error: {folder}: Not a directory"
