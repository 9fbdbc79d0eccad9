"""README.md: its Python runs and what it names is there; its commands are run by tests/shipped/test_documents.py."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from helpers_lines import relinked
from helpers_models import ROOT

from s3prl_ekd import assets, cli
from s3prl_ekd.config.recipe import DistillConfig

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every line of shell, continued lines joined, without comments."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def of_the_plain_loop() -> list[str]:
    """The snippets that are lines of examples/plain_loop.py, which tests/shipped/test_examples.py runs."""
    script = (ROOT / "examples/plain_loop.py").read_text(encoding="utf-8")
    return [snippet for snippet in blocks("python") if textwrap.indent(snippet, 4 * " ") in script]


def test_the_plain_loop_is_shown_as_it_stands():
    (core,) = of_the_plain_loop()
    assert "load_teachers" in core
    assert "backward" in core
    assert "load_student" in core


def test_python_runs(tmp_path):
    """All of it, one snippet after the other, where a student is in demo/student; hub's "." is this repository."""
    shutil.copytree(assets.folder("student_mini"), tmp_path / "demo/student")
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    snippets = [snippet for snippet in blocks("python") if snippet not in of_the_plain_loop()]
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


def test_files_are_there():
    named = {word for words in commands() for word in words if word.startswith("recipes/")}
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/mini/README.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """To files that are there, to headings that are in them, and to the lines where what they name is defined."""
    text = path.read_text(encoding="utf-8")
    assert relinked(text, path.parent) == text, "lines have moved; `make links` writes them anew"
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = path.parent / name if name else path
        assert file.exists(), target
        if file.suffix == ".py":
            assert re.fullmatch(r"(L\d+)?", heading), target
        elif heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


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
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)", README + contributing)):
        assert re.search(rf"^{target}:", rules, flags=re.MULTILINE), target


def test_the_recipe_is_valid():
    (recipe,) = (block for block in blocks("yaml") if "teachers:" in block)
    config = DistillConfig.from_mapping(yaml.safe_load(recipe))
    assert len(config.teachers) == 3


def test_the_grid_is_valid(tmp_path, monkeypatch, capsys):
    """All its options are known; what is missing is the corpus, the first thing that is looked at."""
    monkeypatch.chdir(tmp_path)
    (grid,) = (block for block in blocks("yaml") if "grid.yaml" in block)
    Path("grid.yaml").write_text(grid, encoding="utf-8")
    assert cli.main(["superb", "--grid", "grid.yaml"]) == 2
    assert "mini-corpus" in capsys.readouterr().err
