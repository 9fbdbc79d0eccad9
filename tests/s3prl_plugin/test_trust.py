"""A checkpoint of plain values makes no runner run code that the user did not name."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers_models import TINY

from s3prl_ekd import assets, s3prl_hub
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner
from s3prl_ekd.s3prl_plugin.runners import guard, trust
from s3prl_ekd.s3prl_plugin.runners import pretrain as pretrain_runner
from s3prl_ekd.s3prl_plugin.runners.options import DOWNSTREAM, PRETRAIN

CODE = "could run code; if you trust it, give "


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- downstream -------------------------------------------------------------------------------------------------------


def write_checkpoint(config: dict[str, Any] | None = None, **args: Any) -> str:
    """``dev-best.ckpt`` of an emotion run, plain values only."""
    stored = {
        "upstream": "fbank",
        "upstream_ckpt": None,
        "upstream_model_config": None,
        "downstream": "emotion",
        "hub": "torch",
    }
    states = {"Step": 1, "Args": argparse.Namespace(**stored | args), "Downstream": {}, "Config": config or {}}
    torch.save(states, "dev-best.ckpt")
    return "dev-best.ckpt"


def go_on(monkeypatch, *options: str) -> None:
    """As far as the wrapper goes before s3prl is imported; that it gets there is a :class:`_Accepted`."""

    def accepted() -> None:
        raise _Accepted

    monkeypatch.setattr(s3prl_hub, "register", accepted)
    downstream_runner.run(["-m", "evaluate", "-e", "dev-best.ckpt", *options])


class _Accepted(Exception):  # noqa: N818
    """The checkpoint has been accepted."""


CALL = "__import__('os').system('touch MARKER')"


@pytest.mark.parametrize(
    ("args", "config", "message"),
    [
        ({"upstream": "distiller_local", "upstream_ckpt": "a.pt"}, {}, "-u distiller_local -k a.pt as well"),
        ({"upstream": "hubert_custom", "upstream_ckpt": "a.pt"}, {}, "the upstream hubert_custom of a.pt"),
        ({"upstream": "hubert_url", "upstream_ckpt": "https://a/b"}, {}, "-u hubert_url -k https://a/b as well"),
        ({"upstream": "baseline_local", "upstream_model_config": "a.yaml"}, {}, "-u baseline_local -g a.yaml as well"),
        ({"upstream": "stft_mag", "upstream_model_config": "a.yaml"}, {}, "-g a.yaml as well"),
        ({"upstream": "wavlm", "upstream_ckpt": "a.pt"}, {}, "-k a.pt as well"),
        ({"upstream": "me/mine", "hub": "huggingface"}, {}, "--hub huggingface -u me/mine as well"),
        ({"upstream": "me/mine", "from_hf_hub": True}, {}, "--hub huggingface -u me/mine as well"),
        ({"downstream": "diarization"}, {"downstream_expert": {"x": 1}}, "not every task reads its data safely"),
        ({}, {"downstream_expert": {"modelrc": {"select": CALL}}}, "downstream_expert.modelrc.select: "),
        ({}, {"optimizer": {"name": f"x or {CALL}"}}, "optimizer.name: "),
        ({}, {"runner": {"eval_dataloaders": ["dev", f"x or {CALL} or self.get_dev"]}}, "runner.eval_dataloaders: "),
        ({}, {"downstream_expert": {"datarc": {"decoder_args": {"unk_weight": "-exit()"}}}}, "unk_weight: '-exit"),
        ({"upstream": "hubert_local", "upstream_ckpt": "a\n b.pt"}, {}, "of 'a\\n b.pt', which"),
        ({"upstream": "hubert_local", "upstream_ckpt": "a b.pt"}, {}, "-u hubert_local -k 'a b.pt' as well"),
        ({}, {"a": (0, {"b": "f()"})}, "names a.b: 'f"),
    ],
)
def test_what_could_run_code_is_refused_before_s3prl_is_imported(monkeypatch, args, config, message):
    write_checkpoint(config, **args)
    with pytest.raises(UserError, match=CODE) as caught:
        go_on(monkeypatch)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("--trust-checkpoint")
    with pytest.raises(_Accepted):
        go_on(monkeypatch, "--trust-checkpoint")


@pytest.mark.parametrize(
    "args",
    [
        {"upstream": "ekd_student", "upstream_ckpt": "demo/student"},
        {"upstream": "ekd_student", "upstream_ckpt": "me/hub", "upstream_model_config": "a.yaml"},
        {"upstream": "ekd_student_mini"},
        {"upstream": "fbank"},
        {"upstream": "hubert_base"},
        {"upstream": "wavlm_base_plus", "downstream": "asr"},
        {"upstream": "distilhubert", "downstream": "voxceleb1"},
    ],
)
def test_students_and_stock_upstreams_need_no_confirmation(monkeypatch, args):
    write_checkpoint(**args)
    with pytest.raises(_Accepted):
        go_on(monkeypatch)


@pytest.mark.parametrize("file", sorted(assets.recipe("downstream").glob("*/*.yaml")), ids=lambda file: file.stem)
def test_packaged_configurations_need_no_confirmation(monkeypatch, file):
    config = read_yaml(file)
    config["downstream_expert"]["root"] = "/data/Speech (2nd copy)/IEMOCAP [full]"
    write_checkpoint(config)
    with pytest.raises(_Accepted):
        go_on(monkeypatch)


def test_what_the_user_names_too_is_accepted(monkeypatch):
    write_checkpoint(upstream="hubert_local", upstream_ckpt="a.pt")
    for options in (
        ["-u", "hubert_local", "-k", "a.pt"],
        ["-u", "hubert_local", "-k", "moved.pt"],
        ["-o", "args.upstream=hubert_local,,args.upstream_ckpt=b.pt"],
        ["-o", "args.upstream=fbank,,args.upstream_ckpt=None"],
    ):
        with pytest.raises(_Accepted):
            go_on(monkeypatch, *options)
    for options, message in (
        (["-u", "hubert_local"], "give -k a.pt as well"),
        (["-k", "a.pt"], "give -u hubert_local as well"),
        (["-o", "args.upstream_ckpt=a.pt"], "give -u hubert_local as well"),
    ):
        with pytest.raises(UserError, match=message):
            go_on(monkeypatch, *options)
    write_checkpoint(upstream="me/mine", hub="huggingface")
    with pytest.raises(_Accepted):
        go_on(monkeypatch, "--hub", "huggingface", "-u", "me/mine")


def test_a_configuration_that_the_user_gives_too_is_accepted(monkeypatch):
    config = {"optimizer": {"name": "f()"}, "downstream_expert": {"modelrc": {"select": "g()"}}}
    write_checkpoint(config)
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    Path("other.yaml").write_text(yaml.safe_dump(config | {"optimizer": {"name": "h()"}}))
    with pytest.raises(_Accepted):
        go_on(monkeypatch, "-c", "mine.yaml")
    with pytest.raises(UserError, match=r"optimizer.name: 'f\(\)'"):
        go_on(monkeypatch, "-c", "other.yaml")
    write_checkpoint({"downstream_expert": {"datarc": {"root": "a"}}}, downstream="diarization")
    Path("mine.yaml").write_text("downstream_expert: {datarc: {root: a}}")
    with pytest.raises(_Accepted):
        go_on(monkeypatch, "-c", "mine.yaml")
    Path("mine.yaml").write_text("downstream_expert: {datarc: {root: b}}")
    with pytest.raises(UserError, match=CODE):
        go_on(monkeypatch, "-c", "mine.yaml")


def test_a_checkpoint_chooses_neither_where_files_go_nor_whether_they_are_uploaded(monkeypatch):
    write_checkpoint(expdir="/home/somebody/else", push_to_hf_hub=True)
    options = DOWNSTREAM.parse(["-e", "dev-best.ckpt"])
    changes = downstream_runner._check_checkpoint_to_go_on_from(options)
    assert changes == {"expdir": ".", "push_to_hf_hub": False}
    given = ["-e", "dev-best.ckpt", "-n", "x", "-k", "y", "--push_to_hf_hub", "True", "--verbose"]
    changes = downstream_runner._check_checkpoint_to_go_on_from(DOWNSTREAM.parse(given))
    assert changes == {
        "expdir": "result/downstream/x",
        "push_to_hf_hub": "True",
        "upstream_ckpt": "y",
        "expname": "x",
        "verbose": True,
    }


def test_it_is_not_all_in_vain(here):
    """s3prl's distiller_local does evaluate the checkpoint's string, once the user trusts it."""
    marker = here / "MARKER"
    config = {"distiller": {"extractor_conv_feature_layers": f"open({str(marker)!r}, 'w') and [(8, 10, 5)]"}}
    config |= {"runner": {}, "downstream_expert": {}}
    write_checkpoint(config, upstream="distiller_local", upstream_ckpt="dev-best.ckpt", upstream_trainable=False)
    command = ["-m", "evaluate", "-e", "dev-best.ckpt"]
    with pytest.raises(UserError, match=r"names the upstream distiller_local of dev-best.ckpt"):
        downstream_runner.run(command)
    assert not marker.exists()
    with pytest.raises(UserError, match="-u distiller_local cannot be loaded"):  # there are no weights in the file
        downstream_runner.run([*command, "--trust-checkpoint"])
    assert marker.exists()


class Evil:
    """Unpickled, it calls a function."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch MARKER",)


@pytest.mark.parametrize("write", ["zip", "legacy", 2, 5])
def test_a_pickle_that_would_run_code_is_said_to(here, write):
    """Not only classes nobody knows: torch has a list of its own for os and its like, with another message."""
    states = {"Step": 1, "Args": argparse.Namespace(), "Evil": Evil()}
    if isinstance(write, int):
        Path("states-1.ckpt").write_bytes(pickle.dumps(states, protocol=write))
    else:
        torch.save(states, "states-1.ckpt", _use_new_zipfile_serialization=write == "zip")
    for run in (downstream_runner.run, pretrain_runner.run):
        command = ["-e", "states-1.ckpt"] if run is pretrain_runner.run else ["-m", "evaluate", "-e", "states-1.ckpt"]
        with pytest.raises(UserError, match=r"states-1.ckpt: .*could run code"):
            run(command)
    assert not Path("MARKER").exists()


# --- pretraining ------------------------------------------------------------------------------------------------------


def recipe(**teacher: Any) -> dict[str, Any]:
    plain = {"name": "t", "layers": [1]} | teacher
    return DistillConfig.from_mapping({"student": TINY, "teachers": [plain]}).to_mapping()


def check_pretraining(recipe: Any, *options: str, config: dict[str, Any] | None = None, upstream="ekd_student") -> None:
    states = {"Upstream_Config": recipe, "EKD_Student": {}}
    parsed = PRETRAIN.parse(["-e", "states-1.ckpt", *options])
    trust.check_pretraining("states-1.ckpt", {"upstream": upstream}, states, config or {}, parsed)


def test_teachers_of_a_checkpoint():
    for teacher in ({"s3prl": "hubert_base"}, {"transformers": "me/hub"}, {"mini": "hubert"}):
        check_pretraining(recipe(**teacher))
    for name in ("hubert_local", "distiller_url", "hf_hubert_custom"):
        named = recipe(s3prl=name, ckpt="a.pt")
        with pytest.raises(UserError, match=f"names the teacher s3prl: {name} of a.pt, which {CODE}its recipe by -g"):
            check_pretraining(named)
        check_pretraining(named, "--trust-checkpoint")
    Path("mine.yaml").write_text(yaml.safe_dump(recipe(s3prl="hubert_local", ckpt="a.pt")))
    check_pretraining(recipe(s3prl="hubert_local", ckpt="a.pt"), "-g", "mine.yaml")
    with pytest.raises(UserError, match=r"names the teacher s3prl: hubert_local of b.pt"):
        check_pretraining(recipe(s3prl="hubert_local", ckpt="b.pt"), "-g", "mine.yaml")


def test_the_rest_of_a_pretraining_checkpoint():
    with pytest.raises(UserError, match="names another file as its recipe"):
        check_pretraining("elsewhere.yaml")
    with pytest.raises(UserError, match=r"names optimizer.name: 'f\(\)', .*give it by -c FILE"):
        check_pretraining(recipe(mini="hubert"), config={"optimizer": {"name": "f()"}})
    layers = {"distiller": {"extractor_conv_feature_layers": "f()"}}
    with pytest.raises(UserError, match=r"names distiller.extractor_conv_feature_layers: 'f\(\)', .*by -g FILE"):
        check_pretraining(layers, upstream="distiller")
    for file in assets.recipe().glob("*/config_*.yaml"):
        check_pretraining(recipe(mini="hubert"), config=read_yaml(file))


@pytest.mark.parametrize(
    ("stored", "options", "message"),
    [
        ({"upstream": "ekd_student"}, "", "names the teacher s3prl: hubert_local of a.pt"),
        ({"upstream": "ekd_studnt"}, "", "was made by the recipe 'ekd_studnt', .* did you mean 'ekd_student'"),
        ({"upstream": "ekd_student"}, "-u tera", "-u tera: the checkpoint has 'ekd_student'"),
        ({"upstream": "ekd_student", "seed": 1}, "--seed 2", "--seed 2: the checkpoint has 1, and a run keeps that"),
    ],
)
def test_the_wrapper_of_run_pretrain_asks(stored, options, message):
    config = read_yaml(assets.recipe("mini/config_runner.yaml"))
    states = {"Step": 1, "Args": argparse.Namespace(**stored), "Config": config, "EKD_Student": {}}
    torch.save(states | {"Upstream_Config": recipe(s3prl="hubert_local", ckpt="a.pt")}, "states-1.ckpt")
    with pytest.raises(UserError, match=message):
        pretrain_runner.run(["-e", "states-1.ckpt", *options.split()])


# --- s3prl's own commands in a plugged environment --------------------------------------------------------------------


class Runner:
    """Stands for s3prl's."""

    def __init__(self, args: Any, config: dict[str, Any]) -> None:
        self.begun = True


def test_the_guard_of_a_plugged_runner(monkeypatch):
    module = argparse.Namespace(Runner=type("Runner", (Runner,), {}))
    guard.guard(module, guard.check_downstream)
    args = {"past_exp": "dev-best.ckpt", "init_ckpt": "dev-best.ckpt", "downstream": "ctc", "hub": "torch"}
    args |= {"upstream": "hubert_local", "upstream_ckpt": "a.pt"}
    namespace = argparse.Namespace(**args)
    monkeypatch.setattr(sys, "argv", ["run_downstream.py", "-m", "evaluate", "-e", "dev-best.ckpt", "-k", "b.pt"])
    with pytest.raises(UserError, match=r"--trust-checkpoint, an option of python -m s3prl_ekd.run_downstream$"):
        module.Runner(namespace, {})
    with guard.checked_already():
        assert module.Runner(namespace, {}).begun
    assert module.Runner(argparse.Namespace(past_exp=None, init_ckpt=None), {}).begun
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-2], "-u", "hubert_local", "-k", "a.pt"])
    assert module.Runner(namespace, {}).begun
    # What s3prl's own runner ignores beside -e, it says now; it does follow -o.
    namespace.upstream, namespace.upstream_ckpt = "ekd_student", "student"
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-4], "-k", "moved"])
    with pytest.raises(UserError, match=r"-k moved: the checkpoint has 'student', .* -o args.upstream_ckpt=moved"):
        module.Runner(namespace, {})


def test_the_expert_of_a_plugged_checkout(monkeypatch):
    from s3prl_ekd.s3prl_plugin import checkout

    monkeypatch.setattr(sys, "argv", ["run_pretrain.py", "-e", "result/x"])
    message = "-e result/x: names the teacher s3prl: hubert_local of a.pt, .*an option of python -m s3prl_ekd.run_pretr"
    with pytest.raises(UserError, match=message):
        checkout.UpstreamPretrainExpert({}, recipe(s3prl="hubert_local", ckpt="a.pt"), "cpu", False)
