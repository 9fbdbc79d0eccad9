"""A slot that is a group of layers: its target is their mean, whatever aggregates the teachers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers_models import TINY, FakeTeacher, batch_of, speech_like

from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError

GROUPS = [0, [1, 2, 3], [4, 6]]


def make(entries, teachers, **objective) -> Distiller:
    student = {**TINY, "hidden_dropout": 0, "attention_dropout": 0, "activation_dropout": 0}
    entries = [{"transformers": "unused", **entry} for entry in entries]
    config = DistillConfig.from_mapping({"student": student, "teachers": entries, "objective": objective})
    torch.manual_seed(1)
    return Distiller(config, teachers)


def hidden(teacher, batch):
    return dict(zip(teacher.layers, teacher.hidden_states(batch.clean, batch.lengths).rows, strict=True))


@pytest.mark.parametrize("normalized", [False, True])
def test_the_target_of_a_group_is_its_mean(normalized):
    """With layer_norm_targets of normalised layers, as in data2vec; the loss is L1 by hand."""
    teacher = FakeTeacher("a", layers=(0, 1, 2, 3, 4, 6))
    entry = {"name": "a", "layers": GROUPS, "layer_norm_targets": normalized}
    distiller = make([entry], [teacher], cosine_weight=0)
    assert [target.name for target in distiller.targets] == ["a/0", "a/1-3", "a/4,6"]
    batch = batch_of(speech_like(8000), speech_like(6000, 1))
    layers = hidden(teacher, batch)
    if normalized:
        layers = {i: F.layer_norm(rows, rows.shape[-1:]) for i, rows in layers.items()}
    wanted = [layers[0], (layers[1] + layers[2] + layers[3]) / 3, (layers[4] + layers[6]) / 2]
    predictions = distiller.heads(distiller.student(batch.clean, batch.lengths).rows)
    expected = sum((p - w).abs().mean() for p, w in zip(predictions, wanted, strict=True)) / 3
    output = distiller(batch, details=True)
    torch.testing.assert_close(output.loss, expected)
    assert {"l1/a/1-3", "magnitude/a/4,6"} < output.metrics.keys()


@pytest.mark.parametrize("aggregation", ["layerwise-average", "layerwise-concatenation", "separate-heads"])
def test_a_group_of_one_is_its_layer(aggregation):
    """Bit for bit, whatever else the teachers compute."""
    teachers = [FakeTeacher("a", layers=(1, 2)), FakeTeacher("bb", layers=(1, 2))]
    batch = batch_of(speech_like(8000))
    losses = [
        make([{"name": t.name, "layers": layers} for t in teachers], teachers, aggregation=aggregation)(batch).loss
        for layers in ([1, 2], [[1], [2]])
    ]
    assert torch.equal(*losses)


def test_groups_of_teachers_of_unequal_depth_and_width():
    """A slot of the one is a group, of the other a layer."""
    teachers = [FakeTeacher("a", layers=(1, 2, 3, 4)), FakeTeacher("large", layers=(8, 16), size=32)]
    entries = [{"name": "a", "layers": [[1, 2], [3, 4]]}, {"name": "large", "layers": [8, 16]}]
    distiller = make(entries, teachers, aggregation="layerwise-concatenation")
    assert [target.name for target in distiller.targets] == ["concatenation/1-2+8", "concatenation/3-4+16"]
    batch = batch_of(speech_like(8000))
    small, large = (hidden(teacher, batch) for teacher in teachers)
    given = [[(small[1] + small[2]) / 2, (small[3] + small[4]) / 2], [large[8], large[16]]]
    first, second = distiller.aggregator.combine(given)
    assert torch.equal(first, torch.cat([(small[1] + small[2]) / 2, large[8]], dim=-1))
    assert second.shape[1] == 56
    assert torch.isfinite(distiller(batch).loss)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([[1, 2, 1]], r"teacher 'a': the group \[1, 2, 1\] names a layer twice"),
        ([1, []], "teacher 'a': a group of layers is empty"),
        ([[1, 2], [1, 2]], "teacher 'a': a layer is named twice"),
        ([4, [4]], "teacher 'a': a layer is named twice"),
        ([[1, 2], [2, 1]], r"or a group \(in whatever order its layers are\)"),
        ([[1, -2]], r"teachers\[0\]\.layers\[0\]\[1\]: expected at least 0, found -2"),
        (4, r"teachers\[0\]\.layers: expected a list, found int 4"),
    ],
)
def test_bad_groups_are_refused(layers, message):
    with pytest.raises(UserError, match=message):
        DistillConfig.from_mapping({"teachers": [{"name": "a", "mini": "hubert", "layers": layers}]})
