"""Training checkpoints of both roads, opened as students and for going on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from fuzz.change import Change
from fuzz.kinds.good import MODEL_KEYS, RECIPE, student, use
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.folder import load_student_and_heads
from s3prl_ekd.training.checkpoints import RUN_KEY, newest_readable
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

ABOUT = "checkpoints of run_pretrain and distill: bytes flipped, cut short, entries replaced"


def prepare(good: Path) -> None:
    model, heads = student()
    weights = {f"student.{name}": value for name, value in model.state_dict().items()}
    weights |= {f"heads.{name}": value for name, value in heads.state_dict().items()}
    recipe = {key: RECIPE[key] for key in MODEL_KEYS}
    states = {CHECKPOINT_KEY: weights, RECIPE_KEY: recipe, RUN_KEY: {"recipe": RECIPE, "position": [0, 3]}, "Step": 3}
    torch.save(states, good / "step-00000003.ckpt")


def draw(good: Path, change: Change) -> Callable[[], object]:
    folder = Path("checkpoints")
    folder.mkdir()
    path = folder / "step-00000003.ckpt"
    if change.rng.random() < 0.4:
        states = torch.load(good / path.name, weights_only=True)
        torch.save(change.mapping(states), path)
    elif change.rng.random() < 0.5:
        path.write_bytes(change.data((good / path.name).read_bytes()))
    else:  # the record of the pickle is at the front, the list of records at the end
        shutil.copy(good / path.name, path)
        data = path.read_bytes()
        path.write_bytes(change.data(data[:4096]) + data[4096:-4096] + change.data(data[-4096:]))
    if change.rng.random() < 0.5:
        return lambda: newest_readable(folder)
    return lambda: use(*load_student_and_heads(path))
