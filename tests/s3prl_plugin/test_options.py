"""The runners' command lines: taken apart as s3prl does, and what can be refused at once."""

from __future__ import annotations

import pytest

from s3prl_ekd import s3prl_hub
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner
from s3prl_ekd.s3prl_plugin.runners.options import DOWNSTREAM, PRETRAIN

RUNNERS = [(downstream_runner, DOWNSTREAM), (pretrain_runner, PRETRAIN)]


def test_options_are_taken_apart_as_the_runner_would():
    options = DOWNSTREAM.parse(["-ufbank", "--auto", "-o", "args.device='cpu'", "--see=3", "--new", "x"])
    assert options == {"upstream": "fbank", "auto_resume": True, "override": "args.device='cpu'", "seed": "3"}
    assert options.rest == ["--new", "x"]
    assert options.overrides("device")
    assert not options.overrides("upstream")
    del options["auto_resume"]
    options["seed"] = "-1"  # a value that looks like an option survives
    assert DOWNSTREAM.parse(options.argv()) == options


def test_only_the_whole_name_of_an_option_is_overridden():
    options = DOWNSTREAM.parse(["-o", "args.upstream_ckpt=x,,config.y=1"])
    assert options.overrides("upstream_ckpt")
    assert not options.overrides("upstream")


@pytest.mark.parametrize(("runner", "syntax"), RUNNERS)
def test_every_option_of_the_stock_runner_is_known_and_help_says_what_we_add(runner, syntax, capsys):
    """An unknown option's value would be taken for something else, or pass unchecked."""
    with pytest.raises(SystemExit) as caught:
        runner.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    words = {word.strip(",[]").partition("=")[0] for word in said.split()}
    known = {f"--{name}" for name in (*syntax.values, *syntax.flags)} | {"--trust-checkpoint"}  # ours
    assert {word for word in words if word.startswith("--") and len(word) > 2} == known
    own = said.partition(f"{syntax.prog} is s3prl's runner")[2]
    assert "--trust-checkpoint" in own
    assert "ekd_student" in own
    for example in own.replace("\\\n", " ").splitlines():
        if example.startswith("  python -m"):
            assert syntax.parse(example.split()[3:]).rest == []


@pytest.mark.parametrize(("runner", "syntax"), RUNNERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--device gpu", "--device gpu: unknown; expected cpu, cuda,"),
        ("--device cuda:one", "--device cuda:one: unknown"),
        ("--expnam x --overide y", "no option --overide; did you mean '--override'"),
        ("-n x y", "'y' is one word too many"),
        ("--seed", "argument --seed: expected one argument; python -m .* --help shows how"),
        ("--exp x", "ambiguous option: --exp could match --expname, --expdir"),
    ],
)
def test_what_no_runner_can_have_is_said_before_s3prl_is_imported(runner, syntax, options, message, monkeypatch):
    def imported(*_):
        raise AssertionError("s3prl is imported")

    monkeypatch.setattr(s3prl_hub, "register", imported)
    monkeypatch.setattr(pretrain_runner, "_top_level_modules", imported)
    with pytest.raises(UserError, match=message):
        runner.run(options.split())


def test_each_process_of_torchrun_gets_its_gpu(monkeypatch):
    monkeypatch.setattr(downstream_runner, "default_device", lambda: "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    options = DOWNSTREAM.parse([])
    downstream_runner._choose_device(options)
    assert options.argv() == ["--local_rank=1", "--device=cuda"]
    options = DOWNSTREAM.parse(["--local-rank=0"])  # as torch.distributed.launch spells it
    downstream_runner._choose_device(options)
    assert options.argv() == ["--local_rank=0", "--device=cuda"]
