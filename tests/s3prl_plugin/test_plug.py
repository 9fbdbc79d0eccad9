"""plug and unplug: the unmodified s3prl finds ekd_student, in an environment and in a checkout."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from helpers_s3prl import python, write_corpus, write_phone_recognition, write_recipe, write_student

from s3prl_ekd import cli
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin import plug


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Corpus, downstream configuration, student, pretraining recipe."""
    root = tmp_path_factory.mktemp("place")
    write_corpus(root / "corpus")
    write_phone_recognition(root, root / "corpus", total_steps=1, eval_step=9)
    write_student(root / "student")
    write_recipe(root, root / "corpus" / "train", total_steps=3, save_step=2)
    return root


# --- the environment --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """Python of a new environment that borrows the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return folder / "bin/python"


STOCK = """
import torch
from s3prl.nn import S3PRLUpstream
from s3prl import hub
assert {"ekd_student", "ekd_student_mini"} <= set(hub.options())
model = S3PRLUpstream("ekd_student", path_or_url=WHERE).eval()
states, lengths = model(torch.randn(2, 16000), torch.tensor([16000, 800]))
assert len(states) == 3 and states[0].shape[0] == 2

import yaml
import s3prl.downstream.runner
from s3prl.downstream.ctc import expert
from s3prl.downstream.ctc.text import load_text_encoder
settings = yaml.safe_load(open(CONFIGURATION))["downstream_expert"]
expert.load_dataset("dev", load_text_encoder(**settings["text"]), settings["corpus"])
assert settings["corpus"]["num_workers"] == 0  # else the next loader has 12: the faults of s3prl's tasks are mended
hub.ekd_student()
"""


def test_the_unmodified_s3prl_of_a_plugged_environment(environment, place, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return python(*arguments, executable=str(environment), cwd=tmp_path)

    (site,) = environment.parent.parent.glob("lib/python*/site-packages")
    before = sorted(site.iterdir())
    stock = STOCK.replace("WHERE", repr(str(place / "student"))).replace("CONFIGURATION", repr(str(place / "pr.yaml")))
    without = run("-c", stock)
    assert without.returncode != 0
    assert "error: ekd_student needs" not in without.stderr

    assert run("-m", "s3prl_ekd", "plug").returncode == 0
    (added,) = set(site.iterdir()) - set(before)
    (line,) = added.read_text().splitlines()  # environments keep it: what it names has to stay where it is
    assert line.endswith(" and __import__('s3prl_ekd.s3prl_plugin.hook', fromlist=['install']).install()")
    again = run("-m", "s3prl_ekd", "plug")
    assert again.stdout == f"already plugged: {added}\n"

    # Python itself starts as before: nothing heavy is loaded until s3prl is.
    loaded = run("-c", "import sys; print(*sys.modules)").stdout.split()
    assert "s3prl_ekd.s3prl_plugin.hook" in loaded
    assert not {"torch", "numpy", "s3prl"}.intersection(loaded)

    with_upstream = run("-c", stock)
    assert with_upstream.returncode == 1
    # The bad call at its end is one line, without a traceback.
    last = with_upstream.stderr.splitlines()[-1]
    assert last.startswith("error: ekd_student needs a student")
    assert "Traceback" not in with_upstream.stderr

    options = ["-u", "ekd_student", "-k", str(place / "student"), "-d", "ctc", "-c", str(place / "pr.yaml")]
    trained = run("-m", "s3prl.run_downstream", "-m", "train", *options, "-p", "out", "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out/states-1.ckpt").is_file()

    # A checkpoint may name what it likes: nothing of it is loaded unless the user names it too.
    states = torch.load(tmp_path / "out/states-1.ckpt", weights_only=False)
    states["Args"].upstream, states["Args"].upstream_ckpt = "distiller_local", "evil.ckpt"
    states["Config"]["distiller"] = {"extractor_conv_feature_layers": "open('MARKER', 'w') and [(8, 10, 5)]"}
    torch.save(states, tmp_path / "evil.ckpt")
    evil = ["-m", "s3prl.run_downstream", "-m", "evaluate", "-t", "dev", "-e", "evil.ckpt", "--device", "cpu"]
    refused = run(*evil)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: -e evil.ckpt: names the upstream distiller_local of evil")
    assert not (tmp_path / "MARKER").exists()

    assert run("-m", "s3prl_ekd", "unplug").returncode == 0
    assert sorted(site.iterdir()) == before
    assert run("-m", "s3prl_ekd", "unplug").stdout == "not plugged: nothing to do\n"


def test_site_packages_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(plug, "pth_file", lambda: tmp_path / "file" / plug.PTH)
    assert cli.main(["plug"]) == 2
    assert "python -m s3prl_ekd.run_downstream" in capsys.readouterr().err
    assert cli.main(["plug", "--recipe", "mini"]) == 2


# --- a checkout -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What ``run_pretrain.py`` of a checkout needs, from the installed package: a checkout has the same layout."""
    installed = Path(importlib.util.find_spec("s3prl").submodule_search_locations[0])
    root = tmp_path / "checkout"
    shutil.copytree(installed / "pretrain", root / "s3prl/pretrain", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(installed / "utility", root / "s3prl/utility", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_pretrain.py", "optimizers.py", "schedulers.py"):
        shutil.copy(installed / name, root / "s3prl" / name)
    return root


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def test_the_unmodified_run_pretrain_of_a_checkout(checkout, place, capsys):
    before = listing(checkout)
    assert cli.main(["plug", "--s3prl", str(checkout)]) == 0
    assert f"{checkout}/s3prl/pretrain/ekd_student/config_runner.yaml, under pretrain_expert" in capsys.readouterr().out
    added = sorted(set(listing(checkout)) - set(before))
    target = "s3prl/pretrain/ekd_student"
    files = ("__init__.py", "config_model.yaml", "config_runner.yaml", "pretrain_expert.py")
    assert added == [target, *(f"{target}/{name}" for name in files)]
    assert cli.main(["plug", "--s3prl", str(checkout / "s3prl")]) == 0  # again, by its inner folder
    assert len(listing(checkout)) == len(before) + 5

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return python("run_pretrain.py", "-u", "ekd_student", "--device", "cpu", *arguments, cwd=checkout / "s3prl")

    # torch's own optimizer: with s3prl's *_with_schedule, only a plugged environment can go on.
    torch_optimizer = "config.optimizer={'name': 'TorchOptim', 'torch_optim_name': 'AdamW', 'lr': 0.001}"
    yaml = ["-g", str(place / "config_model.yaml"), "-c", str(place / "config_runner.yaml"), "-o", torch_optimizer]
    trained = run("-n", "name", *yaml)
    assert trained.returncode == 0, trained.stderr
    resumed = run("-n", "name", "-a")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resume from" in resumed.stdout
    wrong = run("-n", "wrong", "-o", "config.pretrain_expert.datarc.libri_root='/none'")  # the drop-in's own YAML
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: ")
    assert "/none" in wrong.stderr.splitlines()[-1]
    assert "Traceback" not in wrong.stderr

    shutil.rmtree(checkout / "s3prl/result")
    assert cli.main(["unplug", "--s3prl", str(checkout)]) == 0
    assert listing(checkout) == before
    assert cli.main(["unplug", "--s3prl", str(checkout)]) == 0
    assert capsys.readouterr().out.endswith("not plugged: nothing to do\n")


def test_what_is_not_ours_is_neither_overwritten_nor_removed(checkout, tmp_path):
    with pytest.raises(UserError, match="not a checkout of s3prl"):
        plug.plug_checkout(tmp_path, "mini")
    foreign = checkout / "s3prl/pretrain/ekd_student"
    foreign.mkdir()
    (foreign / "pretrain_expert.py").write_text("mine\n")
    with pytest.raises(UserError, match="not from s3prl-ekd plug"):
        plug.plug_checkout(checkout, "mini")
    with pytest.raises(UserError, match="not from s3prl-ekd plug"):
        plug.unplug_checkout(checkout)
    assert (foreign / "pretrain_expert.py").read_text() == "mine\n"


def test_edited_yaml_survives(checkout, capsys):
    target = checkout / "s3prl/pretrain/ekd_student"
    plug.plug_checkout(checkout, "mini")
    edited = (target / "config_model.yaml").read_text() + "# mine\n"
    (target / "config_model.yaml").write_text(edited)
    plug.plug_checkout(checkout, "ls960_ekd_average")
    assert "kept, since it was edited" in capsys.readouterr().out
    assert (target / "config_model.yaml").read_text() == edited
    assert "200000" in (target / "config_runner.yaml").read_text()
    plug.unplug_checkout(checkout)
    assert [path.name for path in target.iterdir()] == ["config_model.yaml"]
    assert "these stay, since they were edited or added: config_model.yaml" in capsys.readouterr().out
    plug.plug_checkout(checkout, "mini")  # and it can be plugged again
    assert (target / "config_model.yaml").read_text() == edited


def test_a_recipe_that_is_none(checkout):
    with pytest.raises(UserError, match=r"config_model\.yaml; recipes for pretraining: .*mini"):
        plug.plug_checkout(checkout, "downstream")
    assert not (checkout / "s3prl/pretrain/ekd_student").exists()
