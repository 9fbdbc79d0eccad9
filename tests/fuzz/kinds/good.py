"""Good input that several kinds start from."""

from __future__ import annotations

from typing import Any

import torch
from helpers_models import TINY

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student

RECIPE: dict[str, Any] = {
    "student": {**TINY, "num_hidden_layers": 1, "initialize_from": None},
    "teachers": [
        {"name": "hubert", "mini": "hubert", "layers": [2, 4], "weight": 1.0},
        {"name": "wavlm", "mini": "wavlm", "layers": [2, 4], "weight": 1.0},
    ],
    "objective": {"aggregation": "layerwise-average", "cosine_weight": 1.0},
    "distortion": {"seed": 1, "gaussian_noise": {"probability": 1.0, "snr_db": [5, 30]}},
    "data": {"cuts": ["absent.jsonl.gz"], "batch_seconds": 12, "max_crop_samples": 24000, "num_workers": 0},
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "clip_norm": 5.0},
    "schedule": {"warmup": 0.07, "decay": "cosine", "final": 0.0},
    "trainer": {"max_steps": 10, "precision": 32, "accelerator": "cpu", "devices": 1, "wandb_project": None},
    "targets": {"cache": None},
    "seed": 0,
    "output": "run",
}
MODEL_KEYS = ("student", "teachers", "objective", "distortion")


def student() -> tuple[Student, PredictionHeads]:
    """A student with random weights and two heads."""
    torch.manual_seed(0)
    config = StudentConfig.from_mapping(RECIPE["student"], "student")
    return Student(config).eval(), PredictionHeads(config.hidden_size, [8, 8])


def use(model: Student, heads: PredictionHeads | None = None) -> None:
    """Run a loaded student once.

    Raises:
        AssertionError: its weights or features are not finite, or not of the promised size.
    """
    parameters = [p for module in (model, heads) if module is not None for p in module.parameters()]
    assert all(parameter.isfinite().all() for parameter in parameters), "weights are not finite"
    if max(float(parameter.abs().max()) for parameter in parameters) > 100:  # a flipped bit; features may overflow
        return
    with torch.no_grad():
        states = model(0.1 * torch.randn(2, 1600), torch.tensor([1600, 700])).hidden_states
    assert all(state.isfinite().all() for state in states), "features are not finite"
    assert states[-1].shape[-1] == model.config.hidden_size
