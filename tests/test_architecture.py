"""docs/architecture.md's rooms: what may not enter one does not, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from helpers_models import ROOT

PACKAGE = ROOT / "s3prl_ekd"
MODELS = ("student", "teachers", "network", "distiller", "upstream", "export")
"""Rooms that work with models."""

# What a room's modules may not import, anywhere in them: other rooms by their names, and packages.
FORBIDDEN = {
    "config": (*MODELS, "training", "torch", "yaml", "lightning", "lhotse", "s3prl", "transformers"),
    "cost": (*MODELS, "config", "torch"),
    "network": ("student", "teachers", "s3prl", "transformers", "lightning", "lhotse"),
    "weights": ("student", "teachers", "network", "s3prl", "transformers", "lightning", "lhotse"),
    "transformers_model": (*MODELS, "config", "training", "s3prl", "lightning", "lhotse"),
    "pruning": ("teachers", "distiller", "training", "s3prl", "transformers", "lightning", "lhotse"),
    "student": ("teachers", "s3prl", "transformers", "lightning", "lhotse"),
    "teachers": ("student", "target_cache", "training", "lightning", "lhotse"),
    "targets": ("files", "yaml", "s3prl"),
    "loss": ("files", "yaml", "s3prl"),
    "student_teacher": ("training", "target_cache", "s3prl", "lightning", "lhotse"),
    "distiller": ("target_cache", "training", "s3prl", "lightning", "lhotse"),
    "upstream": ("s3prl_plugin", "s3prl_compat", "s3prl"),
    "audio": (*MODELS, "cuts", "training", "s3prl", "transformers", "lightning"),
    "cuts": (*MODELS, "training", "s3prl", "transformers", "lightning"),
    "calibration": ("student", "target_cache", "training", "s3prl", "lightning", "lhotse"),
    "target_cache": ("training", "s3prl", "lightning"),
    "training": ("s3prl_plugin", "s3prl_compat", "superb", "s3prl", "lhotse"),
    "s3prl_compat": (*MODELS, "config", "training", "s3prl_plugin", "superb", "lightning", "lhotse"),
    "s3prl_plugin": ("training", "target_cache", "superb", "lightning", "lhotse"),
    "tasks": (
        *MODELS,
        "training",
        "s3prl_plugin",
        "superb",
        "mini_corpus",
        "s3prl",
        "transformers",
        "lightning",
        "lhotse",
    ),
    "superb": (
        "student",
        "teachers",
        "network",
        "distiller",
        "training",
        "target_cache",
        "mini_corpus",
        "lightning",
        "lhotse",
    ),
    "mini_corpus": (*MODELS, "training", "superb", "s3prl", "transformers", "lightning", "lhotse"),
}


def is_room(module: str, room: str) -> bool:
    return f"{module}.".startswith(f"{room}.")


@cache
def modules() -> dict[str, Path]:
    """Every module by its name in the package, such as ``student.folder``; the package itself is the empty one."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(module: str) -> frozenset[str]:
    """What a module imports: ours as :func:`modules` names them, other packages' with a dot before them.

    Imports inside functions count, and so do those for annotations alone (``TYPE_CHECKING``): who reads the one must
    know the other, at whatever time Python loads it. So do modules named in a string, as the command line's are.
    """
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports have no place here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"s3prl_ekd(\.\w+)+", str(node.value)):
            found.add(node.value)
    return frozenset(_ours(name) if is_room(name, "s3prl_ekd") else f".{name}" for name in found)


def _ours(name: str) -> str:
    """The module that ``s3prl_ekd.x.y`` means: itself, or the one that ``y`` is defined in."""
    parts = name.split(".")[1:]
    while ".".join(parts) not in modules():
        parts.pop()
    return ".".join(parts)


def room_of(module: str) -> str:
    """A package or module at the top.

    The packages in s3prl_plugin are rooms of their own, and so is config/base.py: what parses settings lies below the
    rooms that define theirs with it, the recipe that puts these together above them.
    """
    parts = module.split(".")
    nested = parts[0] == "s3prl_plugin" and len(parts) > 1 and (PACKAGE / parts[0] / parts[1]).is_dir()
    return ".".join(parts[: 1 + nested]) if module != "config.base" else module


@pytest.mark.parametrize("room", FORBIDDEN)
def test_what_may_not_enter_a_room_does_not(room):
    inside = [module for module in modules() if is_room(module, room)]
    assert inside
    for module in inside:
        for name in imported(module):
            for forbidden in FORBIDDEN[room]:
                assert not is_room(name.removeprefix("."), forbidden), f"{module} imports {name}"


def test_rooms_are_left_in_one_direction_only():
    """No two rooms import each other, and there is no longer circle either.

    Only the front door is left out: ``import s3prl_ekd`` offers load_student, and all rooms take constants from it.
    """
    left: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        for name in imported(module):
            if module and name and not name.startswith(".") and room_of(module) != room_of(name):
                left[room_of(module)].add(room_of(name))
    assert len(left) > 20
    try:
        graphlib.TopologicalSorter(left).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
        ways = [
            f"{module} -> {name}"
            for room, by in zip(circle[1:], circle, strict=False)
            for module in modules()
            for name in imported(module)
            if room_of(module) == room and room_of(name) == by
        ]
        pytest.fail(f"rooms in a circle: {'; '.join(ways)}")


def test_commands_and_the_mini_corpus_are_used_by_the_command_line_alone():
    for module in modules():
        rooms = {room_of(name) for name in imported(module)} - {room_of(module)}
        assert module == "cli" or "commands" not in rooms, module
        assert module == "commands.mini_corpus" or "mini_corpus" not in rooms, module


def test_recipes_are_yaml_and_job_scripts():
    files = [path for path in (ROOT / "recipes").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yaml", ".sbatch"}


def test_the_page_on_architecture_names_every_room():
    """As ``s3prl_plugin/runners/`` or ``files.py``, between backquotes."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = {name.replace("/", ".") for name in re.findall(r"`([\w/]+)(?:/|\.py)`", page)}
    rooms = {room_of(module) for module in modules()} - {"", "__main__"}
    assert rooms <= named, f"not named: {sorted(rooms - named)}"


def test_settings_and_the_command_line_load_nothing_heavy():
    """A command's module defines its arguments; what it does is imported when it runs."""
    light = [
        module for module in modules() if module == "cli" or is_room(module, "commands") or is_room(module, "config")
    ]
    heavy = {"torch", "numpy", "yaml", "s3prl", "transformers", "lhotse", "lightning"}
    code = f"import sys, {', '.join(f's3prl_ekd.{module}' for module in light)}; print(*{heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


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
