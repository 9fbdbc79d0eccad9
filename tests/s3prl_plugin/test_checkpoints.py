"""What the runners go on from, and what they do not take for a checkpoint."""

from __future__ import annotations

import argparse

import pytest
import torch

from s3prl_ekd import s3prl_hub
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.runners import checkpoints
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner


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


def test_the_other_runners_checkpoint_is_named(here):
    torch.save({"Step": 1, "Args": argparse.Namespace(), "Config": {}}, here / "states-1.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of run_downstream, but of run_pretrain"):
        downstream_runner.run(["-m", "evaluate", "-e", "states-1.ckpt"])
    torch.save({"Step": 1, "Args": argparse.Namespace(), "Downstream": {}}, here / "states-1.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of run_pretrain, but of run_downstream"):
        pretrain_runner.run(["-e", "states-1.ckpt"])


def test_a_checkpoint_of_another_kind_is_no_start(here):
    torch.save({"Downstream": {}, "Args": argparse.Namespace()}, here / "states-1.ckpt")
    with pytest.raises(UserError, match="a downstream checkpoint"):
        checkpoints.newest_checkpoint("states-1.ckpt", "-e")
    with pytest.raises(UserError, match=r"no readable checkpoint: .*a downstream checkpoint"):
        checkpoints.newest_checkpoint(str(here), "-e")


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
def test_options_beside_a_checkpoint_are_judged_before_s3prl_is_imported(here, options, message, monkeypatch):
    stored = {"upstream": "fbank", "downstream": "ctc", "seed": 1337, "upstream_ckpt": None}
    stored |= {"upstream_layer_selection": None, "upstream_trainable": False}
    torch.save({"Step": 1, "Args": argparse.Namespace(**stored), "Downstream": {}, "Config": {}}, "states-1.ckpt")
    monkeypatch.setattr(s3prl_hub, "register", lambda: pytest.fail("s3prl is imported"))
    with pytest.raises(UserError, match=message):
        downstream_runner.run(options.split())


def test_a_folder_that_an_override_names_is_the_experiments(here, monkeypatch):
    monkeypatch.setattr(s3prl_hub, "register", lambda: pytest.fail("s3prl is imported"))
    (here / "elsewhere").mkdir()
    (here / "elsewhere/states-1.ckpt").touch()
    (here / "er.yaml").touch()
    command = ["-m", "train", "-u", "fbank", "-d", "emotion", "-c", "er.yaml", "-n", "x", "-o", "args.expdir=elsewhere"]
    with pytest.raises(UserError, match="elsewhere: holds a run already; add -a"):
        downstream_runner.run(command)
    with pytest.raises(UserError, match=r"-e elsewhere: no readable checkpoint: elsewhere/states-1.ckpt"):
        downstream_runner.run([*command, "-a"])
