"""A recipe that names nothing new gives the loss and the gradient of the version before loss terms were a list."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_models import TESTS, TINY, FakeTeacher, batch_of, speech_like

from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller

# "name": (aggregation, other keys of the objective, changes of both teachers, of the second one)
CASES = {
    "average": ("layerwise-average", {}, {}, {"weight": 3.0}),
    "concatenation": ("layerwise-concatenation", {"cosine_weight": 0.5}, {"layer_norm_targets": True}, {}),
    "separate heads": ("separate-heads", {"cosine_weight": 2.0}, {}, {"weight": 0.3, "layers": [1, 2, 4]}),
    "loss on padding": ("separate-heads", {"loss_on_padding": True}, {}, {}),
}


def measure(case: str) -> list[float]:
    """Loss of a batch of two utterances, and the sums of absolute gradients of student and heads."""
    aggregation, objective, both, second = CASES[case]
    entries = [{"name": name, "transformers": "unused", "layers": [1, 2], **both} for name in ("a", "bb")]
    entries[1] |= second
    config = DistillConfig.from_mapping(
        {
            "student": {**TINY, "hidden_dropout": 0, "attention_dropout": 0, "activation_dropout": 0},
            "teachers": entries,
            "objective": {"aggregation": aggregation, **objective},
        }
    )
    padded = config.objective.loss_on_padding
    teachers = [FakeTeacher(e["name"], tuple(e["layers"]), surplus=i, padded=padded) for i, e in enumerate(entries)]
    torch.manual_seed(1)
    distiller = Distiller(config, teachers)
    loss = distiller(batch_of(speech_like(8000), speech_like(6000, 1))).loss
    loss.backward()
    parts = (distiller.student, distiller.heads)
    sums = [sum(p.grad.abs().sum().item() for p in part.parameters() if p.grad is not None) for part in parts]
    return [loss.item(), *sums]


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_before(case):
    """Equal bit for bit on the machine that wrote them; other processors round otherwise."""
    written = json.loads((TESTS / "data" / "losses_of_before.json").read_text())
    assert measure(case) == pytest.approx(written[case], rel=2e-5)
