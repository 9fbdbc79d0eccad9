"""CONTRIBUTING.md: each example is put into a copy of the package as it stands there, and used."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers_models import ROOT, TESTS
from helpers_s3prl import python

DOC = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LONGEST_EXAMPLE = 40
# "`path` (new):" or "`path` and `path` (new):" before a block of a whole file.
FILES = {
    name: text
    for names, text in re.findall(r"^(`[^\n]+`) \(new\):\n\n```\w+\n(.*?)^```$", DOC, flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`(\S+)`", names)
}
CHANGES = re.findall(r"^```diff\n--- (\S+)\n(.*?)^```$", DOC, flags=re.MULTILINE | re.DOTALL)
CHECKS = ("aggregation", "loss_term", "teacher_source", "distortion", "checkpoint_format", "task")


def changed(text: str, hunk: str) -> str:
    """A file after a hunk of a diff without line numbers: `` same``, ``-taken out``, ``+put in``."""
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, f"once in the file:\n{before}"
    return text.replace(before, after)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The package with everything that the document adds to it."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("s3prl_ekd", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (root / name).exists(), name
        (root / name).write_text(text)
    for name, hunk in CHANGES:
        (root / name).write_text(changed((root / name).read_text(), hunk))
    return root


def test_examples_are_short():
    assert len(re.findall(r"^### ", DOC, flags=re.MULTILINE)) == len(CHECKS)
    for name, text in [*FILES.items(), *CHANGES]:
        assert text.count("\n") < LONGEST_EXAMPLE, name


@pytest.mark.timeout(1200)  # half a minute on a core that does nothing else
def test_examples_do_what_they_say(tree):
    environment = os.environ | {"PYTHONPATH": f"{tree}:{TESTS}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    checks = ["-m", "pytest", "-rA", "-p", "no:cacheprovider", str(TESTS / "shipped/checks_contributing.py")]
    done = python(*checks, cwd=tree, env=environment, timeout=1000)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.findall(r"^PASSED .*::test_(\w+)$", done.stdout, flags=re.MULTILINE) == list(CHECKS)
