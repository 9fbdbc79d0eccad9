"""AdamW's parameter groups and the learning rate over time."""

from __future__ import annotations

import helpers_train as h
import pytest

from s3prl_ekd.config.training import ScheduleConfig
from s3prl_ekd.training.optim import learning_rate_factor, parameter_groups


def test_weight_decay_spares_biases_and_norms(tmp_path):
    distiller = h.build(h.recipe(tmp_path))
    names = {id(parameter): name for name, parameter in distiller.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in parameter_groups(distiller, 0.1))
    assert decayed | free == set(names.values())
    assert not decayed & free
    spared = {name for name in names.values() if name.endswith(".bias") or "layer_norm" in name}
    assert free == spared | {"student.encoder.pos_conv_embed.conv.parametrizations.weight.original0"}
    assert "heads.0.2.weight" in decayed


def test_learning_rate():
    config = ScheduleConfig(warmup=0.2, final=0.1)
    factors = [learning_rate_factor(step, 10, config) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.55)
    assert factors[10] == pytest.approx(0.1)
    cosine = ScheduleConfig.from_mapping({"warmup": 0.2, "decay": "cosine"})
    assert learning_rate_factor(6, 10, cosine) == pytest.approx(0.5)
    constant = ScheduleConfig.from_mapping({"warmup": 0.0, "decay": "constant", "final": 0.1})
    assert {learning_rate_factor(step, 10, constant) for step in range(11)} == {1.0}
