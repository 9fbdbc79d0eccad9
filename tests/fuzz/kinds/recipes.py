"""Recipes whose values no network or run can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from fuzz.change import Change
from fuzz.kinds.good import RECIPE, use
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.student.model import Student
from s3prl_ekd.training.optim import learning_rate_factor

ABOUT = "recipes: values of other kinds and sizes, keys removed, renamed and added; what is accepted is built and used"

_SMALL = 5_000_000  # parameters: what is built here


def prepare(good: Path) -> None:
    _try(RunConfig.from_mapping(RECIPE))  # torch imports some of its parts when they are first used


def draw(good: Path, change: Change) -> Callable[[], object]:
    with open("recipe.yaml", "w", encoding="utf-8", errors="surrogatepass") as file:
        yaml.safe_dump(change.mapping(RECIPE), file, allow_unicode=True)
    return lambda: _try(RunConfig.from_yaml("recipe.yaml"))


def _try(config: RunConfig) -> None:
    assert RunConfig.from_mapping(config.to_mapping()) == config
    if config.student.parameters < _SMALL:
        use(Student(config.student).eval())
    _update(config)
    if config.distortion.noise.folder is None and config.distortion.reverberation.folder is None:
        assert Distorter(config.distortion)(torch.ones(2000), epoch=0, utterance="a").isfinite().all()


def _update(config: RunConfig) -> None:
    """One step of the optimizer, at three learning rates of the schedule."""
    settings, weight = config.optimizer, torch.ones(3, requires_grad=True)
    for step in {0, config.trainer.max_steps // 2, config.trainer.max_steps - 1}:
        rate = settings.lr * learning_rate_factor(step, config.trainer.max_steps, config.schedule)
        optimizer = torch.optim.AdamW(
            [weight], lr=rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
        weight.grad = torch.tensor([0.0, 1e-3, 1.0])
        optimizer.step()
    assert weight.isfinite().all(), "a step of the optimizer gives infinite weights"
