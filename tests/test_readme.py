"""README.md: what it shows runs, or at least is understood."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from s3prl_ekd import assets, cli
from s3prl_ekd.config import DistillConfig
from s3prl_ekd.s3prl_plugin import downstream_runner, pretrain_runner

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every line of shell, continued lines joined, without comments."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_python_runs(tmp_path):
    """All of it, one snippet after the other, where a student is in demo/student; hub's "." is this repository."""
    shutil.copytree(assets.folder("student_mini"), tmp_path / "demo/student")
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    snippets = blocks("python")
    assert len(snippets) == 4
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 49, 192])\ntensor([49, 37])" in done.stdout


@pytest.mark.parametrize("words", [w for w in commands() if w[0] == "s3prl-ekd"], ids=" ".join)
def test_commands_are_understood(words):
    command = next(word for word in words if word in cli.COMMANDS)
    with contextlib.redirect_stderr(io.StringIO()):  # of argparse
        cli.build_parser(command).parse_args(words[1:])


def test_options_of_the_runners_are_known():
    syntaxes = {
        "s3prl_ekd.run_downstream": downstream_runner.SYNTAX,
        "s3prl.run_downstream": downstream_runner.SYNTAX,
        "s3prl_ekd.run_pretrain": pretrain_runner.SYNTAX,
    }
    found = [words for words in commands() if words[:2] == ["python", "-m"]]
    assert {words[2] for words in found} == set(syntaxes)
    for words in found:
        assert syntaxes[words[2]].parse(words[3:]).rest == [], words


def test_files_are_there():
    named = {word for words in commands() for word in words if word.startswith("recipes/")}
    linked = {target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target and target[0] != "#"}
    assert named
    for name in named | linked:
        assert (ROOT / name).exists(), name


def test_nothing_is_left_open():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")):
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", path.read_text(encoding="utf-8")), path


def test_recipes_are_not_copied_over_anything(tmp_path, capsys):
    assert cli.main(["recipes", "mini", str(tmp_path / "mine")]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()}
    assert copied["config_model.yaml"] == assets.recipe("mini/config_model.yaml").read_bytes()
    assert cli.main(["recipes", "ls960_distilhubert", str(tmp_path / "mine")]) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()} == copied
    assert cli.main(["recipes", "mnii", str(tmp_path / "other")]) == 2
    assert "did you mean 'mini'" in capsys.readouterr().err


def test_targets_of_make_are_there():
    rules = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", rules, flags=re.MULTILINE), target


def test_the_recipe_is_valid():
    (recipe,) = blocks("yaml")
    config = DistillConfig.from_mapping(yaml.safe_load(recipe))
    assert len(config.teachers) == 3
