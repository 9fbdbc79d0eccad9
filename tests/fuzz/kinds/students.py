"""Student folders, opened and used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from fuzz.change import Change
from fuzz.kinds.good import student, use
from s3prl_ekd.student.folder import load_student_and_heads, save_student

ABOUT = "student folders: values of config.json replaced, weights' bytes flipped or cut, files missing"


def prepare(good: Path) -> None:
    save_student(good / "student", *student())


def draw(good: Path, change: Change) -> Callable[[], object]:
    folder = Path("student")
    shutil.copytree(good / "student", folder)
    names = ("config.json", "config.json", "model.safetensors", "model.safetensors", "heads.safetensors")
    path = folder / change.rng.choice((*names, "preprocessor_config.json"))
    change.note(path.name)
    action = change.rng.random()
    if action < 0.05 and not change.harmless:
        path.unlink()
    elif action < 0.6 and path.suffix == ".json":
        path.write_text(json.dumps(change.mapping(json.loads(path.read_text()))))
    else:
        path.write_bytes(change.data(path.read_bytes(), header=2000))
    return lambda: _load(folder)


def _load(folder: Path) -> None:
    model, heads = load_student_and_heads(folder)
    modules = [model] if heads is None else [model, heads]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert all(parameter.isfinite().all() for parameter in parameters), "weights are not finite"
    if max(float(parameter.abs().max()) for parameter in parameters) < 100:  # others may well overflow
        use(model)
