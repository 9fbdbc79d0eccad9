"""Documents whose shell commands are run as they stand: in a copy of the checkout whose recipes are made small.

What is replaced is named here and nothing else: ``/data`` by a folder of small corpora, the mini corpus by its smallest
form, the teachers that would have to be downloaded by the package's tiny ones, and numbers of steps. Options, settings
and numbers of workers stay.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helpers_corpora
import helpers_results
import soundfile
import yaml
from helpers_models import ROOT

from s3prl_ekd import assets
from s3prl_ekd.superb.summary import write_summary

_TEACHERS = {"hubert": "hubert", "robust_hubert": "robust_hubert", "wavlm": "wavlm"}  # names in recipes -> `mini:`
_STUDENT = {
    "hidden_size": 192,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "conv_dim": [32, 48, 64, 96, 128, 160, 192],
}
_STEPS = 3

# Programs that a reader has and a test must not run in earnest; each only looks whether what it is given exists.
_STAND_INS = {
    "git": 'test "$1" = clone && mkdir "$3" && cp Makefile "$3"',
    "make": 'for target in "$@"; do grep -q "^$target:" Makefile || { echo "no target $target"; exit 1; }; done',
    "pip": 'test "$1" = install',
    "nox": "test -f noxfile.py",
    "tensorboard": 'test "$1" = --logdir && test -d "$2"',
    "sbatch": 'for word in "$@"; do case $word in *.sbatch) test -f "$word";; esac; done',
}

_SMALL_MINI_CORPUS = """
import sys
from s3prl_ekd.mini_corpus.build import build
from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
build(sys.argv[1], MiniCorpusConfig.tiny())
"""


@dataclass(frozen=True)
class Block:
    """The commands between two fences."""

    line: int
    """Where it begins in the document."""
    text: str


def blocks(document: str, language: str) -> list[Block]:
    """The fenced blocks of one language."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return [
        Block(document[: match.start()].count("\n") + 1, match[1])
        for match in re.finditer(pattern, document, flags=re.MULTILINE | re.DOTALL)
    ]


class Checkout:
    """A copy of the checkout with small recipes, a folder in place of ``/data``, and a shell in it.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "s3prl-ekd"
        self.data = root / "data"
        self.data.mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("s3prl_ekd", "recipes"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=ignored)
        for name in ("Makefile", "setup.cfg", "noxfile.py", "hubconf.py", "requirements"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.folder / name)
        for path in (self.folder / "recipes").rglob("*.yaml"):
            recipe = small(yaml.safe_load(self._here(path.read_text())))
            path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        self._bin = _environment(root / "environment")
        (root / "small_mini_corpus.py").write_text(_SMALL_MINI_CORPUS)
        scripts = {
            "s3prl-ekd": f'[ "$1" = mini-corpus ] && exec python {root}/small_mini_corpus.py "$2"\n'
            'exec python -m s3prl_ekd "$@"',
            "torchrun": 'exec python -m torch.distributed.run "$@"',
        } | _STAND_INS
        for name, script in scripts.items():
            path = self._bin / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def _here(self, text: str) -> str:
        """What stands for the reader's folders and long trainings, replaced."""
        steps = 2 * _STEPS if "--resume" in text else _STEPS  # a run is resumed to be made longer
        return re.sub(r"\bmax_steps=\d+", f"max_steps={steps}", text).replace("/data/", f"{self.data}/")

    def run(self, block: Block, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a block in one shell that stops at the first command that fails."""
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", self._here(block.text)],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=600,
            env={
                "PATH": f"{self._bin}:/usr/bin:/bin",
                "HOME": str(self.folder.parent),
                "PYTHONPATH": str(self.folder),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONWARNINGS": "ignore",
                **variables,
            },
        )


def _environment(folder: Path) -> Path:
    """The folder of programs of a new environment that borrows this one's packages: what is plugged stays in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def small(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of ours with tiny teachers, a student of their size and few steps; all else as it is."""
    for teacher in recipe.get("teachers", ()):
        if "s3prl" in teacher:
            del teacher["s3prl"]
            teacher["mini"] = _TEACHERS[teacher["name"]]
            teacher["layers"] = [2, 3, 4][: len(teacher["layers"])]
    if "student" in recipe:
        recipe["student"] |= {key: value for key, value in _STUDENT.items() if key in recipe["student"]}
        recipe["student"]["conv_dim"] = _STUDENT["conv_dim"]
    if "trainer" in recipe:
        recipe["trainer"]["max_steps"] = _STEPS
    if "runner" in recipe:
        every = {"log_step": 1, "save_step": 1, "eval_step": _STEPS}
        recipe["runner"] |= {"total_steps": _STEPS} | {key: every[key] for key in every if key in recipe["runner"]}
    if "scheduler" in recipe:
        recipe["scheduler"]["num_warmup_steps"] = 1
    return recipe


def fill(checkout: Checkout, *, mini_corpus: bool) -> None:
    """What documents take for granted: below ``/data`` corpora in their real layouts; a student, a recipe, results.

    ``mini_corpus``: also noise where ``s3prl-ekd mini-corpus mini-corpus`` would put it.
    """
    data = checkout.data
    helpers_corpora.librispeech(data / "LibriSpeech")
    helpers_corpora.lexicon(data / "librispeech-lexicon.txt")
    helpers_corpora.voxceleb1(data / "VoxCeleb1")
    shutil.copy(data / "VoxCeleb1/iden_split.txt", data / "iden_split.txt")
    helpers_corpora.iemocap(data / "IEMOCAP_full_release")
    helpers_corpora.musan(data / "musan")
    shutil.copytree(data / "LibriSpeech/train-clean-100", data / "speech")
    files = sorted((data / "speech").rglob("*.flac"))
    lines = [f"{file.relative_to(data / 'speech')}\t{soundfile.info(file).frames}\n" for file in files]
    (data / "train.tsv").write_text(f"{data / 'speech'}\n{''.join(lines)}")
    for name in ("ekd_student", "demo/student"):
        shutil.copytree(assets.folder("student_mini"), checkout.folder / name)
    for part in ("train", "dev"):
        shutil.copytree(data / "speech", checkout.folder / "speechocean762" / part)
    if mini_corpus:
        shutil.copytree(data / "musan/noise", checkout.folder / "mini-corpus/noise")
    write_summary(checkout.folder / "demo/results/fbank/summary.json", [helpers_results.row()])
    recipe = yaml.safe_load((checkout.folder / "recipes/mini/ekd.yaml").read_text())
    recipe["data"] |= {"cuts": ["speech.jsonl.gz"], "dev_cuts": []}
    for name in ("recipe.yaml", "RECIPE.yaml"):
        (checkout.folder / name).write_text(yaml.safe_dump(recipe))
    checkout.run(Block(0, "s3prl-ekd data folder /data/speech speech.jsonl.gz")).check_returncode()


def run_commands(name: str, root: Path) -> None:
    """Run all of a document's shell commands, block by block, in a checkout below ``root``."""
    text = (ROOT / name).read_text(encoding="utf-8")
    checkout = Checkout(root)
    fill(checkout, mini_corpus="s3prl-ekd mini-corpus" not in text)
    for block in blocks(text, "bash"):
        done = checkout.run(block)
        assert done.returncode == 0, f"{name}, line {block.line}:\n{block.text}\n{done.stderr[-3000:]}"
