"""Documents whose shell commands are run as they stand: in a copy of the checkout, with small recipes.

What is replaced is named here and nothing else: ``/data`` by a folder of small corpora, the mini corpus by its smallest
form, the teachers that would have to be downloaded by the package's tiny ones, and numbers of steps, of batches in a
step and of workers, one where there are any (test_shipped_recipes.py has all of them). Options and settings stay.
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
import helpers_warm
import soundfile
import yaml
from helpers_models import ROOT, TESTS
from helpers_recipes import with_tiny_teachers

from s3prl_ekd import assets
from s3prl_ekd.cli import main
from s3prl_ekd.superb.summary import write_summary

_STUDENT = {
    "hidden_size": 192,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "conv_dim": [32, 48, 64, 96, 128, 160, 192],
}
_STEPS = 2

# Programs that a reader has and a test must not run in earnest; each only looks whether what it is given exists.
_STAND_INS = {
    "git": 'test "$1" = clone && mkdir "$3" && cp Makefile "$3"',
    "make": 'for target in "$@"; do grep -q "^$target:" Makefile || { echo "no target $target"; exit 1; }; done',
    "pip": 'test "$1" = install',
    "nox": "test -f noxfile.py",
    "tensorboard": 'test "$1" = --logdir && test -d "$2"',
    "sbatch": 'for word in "$@"; do case $word in *.sbatch) test -f "$word";; esac; done',
}

# `python -m MODULE` of this package, from its second start on in the warm process; all else as it is.
_PYTHON = """
case "$1 $2" in "-m s3prl_ekd"*)
    if test -e {root}/started-"$2"; then shift; exec {python} -I -S {root}/client.py "$@"; fi
    touch {root}/started-"$2";;
esac
exec {python} "$@"
"""

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


class Shop:
    """What all documents' commands share: the package with small recipes, an environment, and what to start from.

    Each kind of program (``s3prl-ekd``, ``python -m s3prl_ekd.run_downstream`` ...) starts as a process of its own
    the first time; after that it is forked off one that has imported torch and s3prl (``helpers_warm``), which takes
    longer than most commands.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.data.mkdir(parents=True)
        self._package, self._template = root / "package", root / "template"
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("s3prl_ekd", "recipes"):
            shutil.copytree(ROOT / name, self._package / name, ignore=ignored)
        for path in (self._package / "recipes").rglob("*.yaml"):
            recipe = small(yaml.safe_load(self.here(path.read_text())))
            path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        shutil.copytree(self._package / "recipes", self._template / "recipes")
        for name in ("Makefile", "setup.cfg", "noxfile.py", "hubconf.py", "requirements"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self._template / name)
        _fill(self.data, self._template)
        self._given = sorted(self.data.iterdir())
        self._programs = root / "programs"
        self._write_programs(_environment(root / "environment"))
        self._warm = helpers_warm.start(root / "warm", root / "environment/bin/python", self.environment(TESTS))

    def close(self) -> None:
        """End the processes that were started."""
        self._warm.kill()
        self._warm.wait()

    def checkout(self, root: Path) -> Path:
        """A reader's checkout in a new folder, with ``/data`` as if no command had been there."""
        for path in set(self.data.iterdir()).difference(self._given):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return shutil.copytree(self._template, root / "s3prl-ekd")

    def here(self, text: str) -> str:
        """What stands for the reader's folders and long trainings, replaced."""
        steps = 2 * _STEPS if "--resume" in text else _STEPS  # a run is resumed to be made longer
        return re.sub(r"\bmax_steps=\d+", f"max_steps={steps}", text).replace("/data/", f"{self.data}/")

    def environment(self, *more: Path) -> dict[str, str]:
        """The variables of a reader's shell."""
        return {
            "PATH": f"{self._programs}:{self.root / 'environment/bin'}:/usr/bin:/bin",
            "HOME": str(self.root),
            "PYTHONPATH": ":".join(map(str, (self._package, *more))),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def run(self, block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a block in one shell, in a folder; it stops at the first command that fails."""
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", self.here(block.text)],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=1200,
            env=self.environment(),
        )

    def _write_programs(self, environment: Path) -> None:
        self._programs.mkdir()
        (self.root / "small_mini_corpus.py").write_text(_SMALL_MINI_CORPUS)
        (self.root / "client.py").write_text(helpers_warm.client(self.root / "warm"))
        scripts = {
            "python": _PYTHON.format(root=self.root, python=environment / "python"),
            "s3prl-ekd": f'[ "$1" = mini-corpus ] && exec python {self.root}/small_mini_corpus.py "$2"\n'
            'exec python -m s3prl_ekd "$@"',
            "torchrun": 'exec python -m torch.distributed.run "$@"',
        } | _STAND_INS
        for name, script in scripts.items():
            path = self._programs / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _environment(folder: Path) -> Path:
    """The folder of programs of a new environment that borrows this one's packages: what is plugged stays in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def small(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of ours with tiny teachers, a student of their size and few steps; all else as it is."""
    with_tiny_teachers(recipe)
    if "student" in recipe and "copy" not in recipe["student"]:
        recipe["student"] |= {key: value for key, value in _STUDENT.items() if key in recipe["student"]}
        recipe["student"]["conv_dim"] = _STUDENT["conv_dim"]
    if "trainer" in recipe:
        recipe["trainer"]["max_steps"] = _STEPS
    for stage in recipe.get("stages", ()):
        stage["max_steps"] = _STEPS
    if "pruning" in recipe:
        recipe["pruning"]["warmup_steps"] = 1
    if "runner" in recipe:
        every = {"log_step": 1, "save_step": 1, "eval_step": _STEPS}
        recipe["runner"] |= {"total_steps": _STEPS, "gradient_accumulate_steps": 1}
        recipe["runner"] |= {key: every[key] for key in every if key in recipe["runner"]}
    if "scheduler" in recipe:
        recipe["scheduler"]["num_warmup_steps"] = 1
    _with_one_worker(recipe)
    return recipe


def _with_one_worker(section: dict[str, Any]) -> None:
    for key, value in section.items():
        if key == "num_workers":
            section[key] = min(value, 1)
        elif isinstance(value, dict):
            _with_one_worker(value)


def _fill(data: Path, checkout: Path) -> None:
    """What documents take for granted: below ``/data`` corpora in their real layouts; a student, a recipe, results."""
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
        shutil.copytree(assets.folder("student_mini"), checkout / name)
    for part in ("train", "dev"):
        shutil.copytree(data / "speech", checkout / "speechocean762" / part)
    write_summary(checkout / "demo/results/fbank/summary.json", [helpers_results.row()])
    recipe = yaml.safe_load((checkout / "recipes/mini/ekd.yaml").read_text())
    recipe["data"] |= {"cuts": ["speech.jsonl.gz"], "dev_cuts": []}
    for name in ("recipe.yaml", "RECIPE.yaml"):
        (checkout / name).write_text(yaml.safe_dump(recipe))
    assert main(["data", "folder", str(data / "speech"), str(checkout / "speech.jsonl.gz")]) == 0


def run_commands(name: str, shop: Shop, root: Path) -> None:
    """Run all of a document's shell commands, block by block, in a checkout below ``root``."""
    text = (ROOT / name).read_text(encoding="utf-8")
    folder = shop.checkout(root)
    if "s3prl-ekd mini-corpus" not in text:  # where it would put noise
        shutil.copytree(shop.data / "musan/noise", folder / "mini-corpus/noise")
    for block in blocks(text, "bash"):
        done = shop.run(block, folder)
        assert done.returncode == 0, f"{name}, line {block.line}:\n{block.text}\n{done.stderr[-3000:]}"
