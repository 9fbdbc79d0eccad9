"""A wheel built from the repository works in another environment, without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from helpers_models import ROOT
from helpers_s3prl import python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is written into the checkout."""
    source = tmp_path_factory.mktemp("source") / "s3prl-ekd"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo", "runs", "result")
    shutil.copytree(ROOT, source, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """Python of a new environment with the wheel; everything else is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    interpreter = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter)]
    # Elsewhere and without PYTHONPATH, by which pip could take the checkout for an installation of the same version.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    subprocess.run(install, check=True, cwd=folder, env=variables)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its .pth files, ours among them, not
    return interpreter


def test_everything_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("s3prl_ekd", "recipes"):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in name:
                assert (name if folder == "s3prl_ekd" else f"s3prl_ekd/{name}") in packed


def test_it_works_without_the_checkout(environment, tmp_path):
    def run(*arguments: str) -> str:
        done = python(*arguments, executable=str(environment), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import s3prl_ekd; print(s3prl_ekd.__file__)").strip()
    assert where.startswith(str(environment.parent.parent))
    script = environment.with_name("s3prl-ekd")
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert version == run("-c", "import s3prl_ekd; print('s3prl-ekd', s3prl_ekd.__version__)")
    assert "ls960_ekd_average" in run("-m", "s3prl_ekd", "recipes")
    run("-m", "s3prl_ekd", "recipes", "mini", "my_recipe")
    # The packaged recipe and teachers, on speech of our own, through s3prl's runner; then the packaged student.
    run("-c", SPEECH)
    options = ["-u", "ekd_student", "-g", "my_recipe/config_model.yaml", "-n", "x", "-p", "run"]
    run("-m", "s3prl_ekd.run_pretrain", *options)
    run("-m", "s3prl_ekd", "export-checkpoint", "run", "student")
    assert run("-c", STUDENTS).split() == ["3", "3"]


SPEECH = """
import pathlib, torch, soundfile, yaml
torch.manual_seed(0)
for i in range(4):
    for folder in ("speech", "mini-corpus/noise"):
        path = pathlib.Path(folder, f"{i}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * torch.randn(8000).numpy(), 16000)
path = pathlib.Path("my_recipe/config_runner.yaml")
runner = yaml.safe_load(path.read_text())
runner["runner"] |= {"total_steps": 3, "log_step": 1, "save_step": 1}
runner["scheduler"]["num_warmup_steps"] = 1
runner["pretrain_expert"]["datarc"] = {"audio_folder": "speech", "train_batch_size": 2, "num_workers": 0}
path.write_text(yaml.safe_dump(runner))
"""

STUDENTS = """
import torch
from s3prl_ekd.s3prl_plugin import hub
hub.register()
from s3prl.nn import S3PRLUpstream
for name, where in (("ekd_student", "student"), ("ekd_student_mini", None)):
    states, lengths = S3PRLUpstream(name, path_or_url=where).eval()(torch.randn(2, 16000), torch.tensor([16000, 800]))
    print(len(states))
"""
