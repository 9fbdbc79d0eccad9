"""docs/architecture.md's rooms: what may not enter one does not, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_models import ROOT

PACKAGE = ROOT / "s3prl_ekd"

# What a room's modules may not import, anywhere in them.
FORBIDDEN = {
    "network": ("s3prl_ekd.student", "s3prl_ekd.teachers", "s3prl", "transformers"),
    "student": ("s3prl_ekd.teachers", "s3prl", "lightning", "lhotse"),
    "teachers": ("s3prl_ekd.student.model", "lightning"),
    "targets.py": ("s3prl_ekd.files", "yaml", "s3prl"),
    "loss.py": ("s3prl_ekd.files", "yaml", "s3prl"),
    "distiller.py": ("s3prl", "lightning", "lhotse"),
    "upstream.py": ("s3prl", "s3prl_ekd.s3prl_plugin"),
    "data": (
        "s3prl_ekd.distiller",
        "s3prl_ekd.student",
        "s3prl_ekd.teachers",
        "s3prl_ekd.network",
        "s3prl",
        "transformers",
        "lightning",
    ),
    "cache": ("s3prl", "lightning"),
    "training": ("s3prl", "lhotse"),
    "train.py": ("s3prl", "lhotse"),
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms(room):
    place = PACKAGE / room
    modules = [place] if place.is_file() else list(place.rglob("*.py"))
    assert modules
    for module in modules:
        for name in imported(module):
            for forbidden in FORBIDDEN[room]:
                assert not f"{name}.".startswith(f"{forbidden}."), f"{module.relative_to(PACKAGE)} imports {name}"


def test_settings_and_the_command_line_load_nothing_heavy():
    modules = "s3prl_ekd, s3prl_ekd.cli, s3prl_ekd.config.recipe, s3prl_ekd.config.data, s3prl_ekd.config.training"
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "s3prl", "transformers", "lhotse", "lightning"} & set(loaded)


def test_no_pickle_is_loaded_unsafely_and_nothing_is_evaluated():
    for module in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "pickle.load", "pickle.loads"}, module
            if called == "torch.load":
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert keywords.get("weights_only") == "True", module
