"""The objective against formulas written by hand."""

from __future__ import annotations

import math

import pytest
import torch

from s3prl_ekd.config.recipe import AGGREGATORS, LOSS_TERMS, LossTermConfig, ObjectiveConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.loss import Comparison, Loss, TermSums, cosine, l1
from s3prl_ekd.network.frames import Packing
from s3prl_ekd.targets import Aggregator, TeacherSpec

CPU = torch.device("cpu")


def aggregator(kind: str, *teachers: TeacherSpec) -> Aggregator:
    return AGGREGATORS.load(kind)(teachers, ObjectiveConfig(aggregation=kind))


def test_loss_by_hand_with_padding():
    prediction = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [9.0, 9.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[-3.0, -4.0], [-7.0, 5.0]]])
    packing = Packing(torch.tensor([2, 1]), prediction.device)  # the last frame is padding and must not count
    given = packing.pack(prediction), packing.pack(target), packing
    compared = Comparison(*given, LossTermConfig(kind="cosine"))

    def minus_log_sigmoid(x):
        return math.log(1 + math.exp(-x))

    distance = (0 + 1) / 2 + (0 + 1) / 2 + (6 + 8) / 2
    cosines = [1 / math.sqrt(2), 1.0, -1.0]
    cosine_loss = sum(map(minus_log_sigmoid, cosines))
    assert [value.item() for value in l1(compared)] == pytest.approx([distance, distance])
    assert cosine(compared).loss.item() == pytest.approx(cosine_loss, rel=1e-6)
    assert cosine(compared).logged.item() == pytest.approx(sum(cosines), abs=1e-6)
    for weight in (0, 1, 2.5):
        total, logged = Loss(ObjectiveConfig(cosine_weight=weight))(*given)
        assert total.item() == pytest.approx(distance + weight * cosine_loss, rel=1e-6)
        assert set(logged) == ({"l1", "cosine"} if weight else {"l1"})
    assert set(Loss(ObjectiveConfig(cosine_weight=0))(*given, details=True)[1]) == {"l1", "cosine"}


def test_a_term_is_a_function_and_a_line_in_a_table(monkeypatch):
    monkeypatch.setitem(LOSS_TERMS, "cube", f"{__name__}:cube")
    losses = [{"kind": "l1"}, {"kind": "cube", "weight": 0.5}]
    loss = Loss(ObjectiveConfig.from_mapping({"losses": losses}))
    total, logged = loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), Packing(torch.tensor([1]), CPU))
    assert total.item() == 1 + 0.5 * 4
    assert {name: value.item() for name, value in logged.items()} == {"l1": 1, "cube": 4}


def cube(given: Comparison) -> TermSums:
    error = (given.prediction - given.target).abs().pow(3).mean(dim=-1).sum()
    return TermSums(error, error)


def test_padding_gets_no_gradient():
    prediction = torch.randn(2, 5, 3, requires_grad=True)
    packing = Packing(torch.tensor([5, 2]), prediction.device)
    Loss(ObjectiveConfig())(packing.pack(prediction), torch.zeros(7, 3), packing)[0].backward()
    mask = packing.mask()
    assert prediction.grad[~mask].abs().max() == 0
    assert prediction.grad[mask].abs().min() > 0


def test_packing_and_back():
    padded = torch.arange(1.0, 13.0).view(2, 3, 2)
    packing = Packing(torch.tensor([1, 3]), padded.device)
    rows = packing.pack(padded)
    assert rows.tolist() == [[1, 2], [7, 8], [9, 10], [11, 12]]
    back = packing.unpack(rows)
    assert torch.equal(back[1], padded[1])
    assert back[0].tolist() == [[1, 2], [0, 0], [0, 0]]
    assert packing.mask().tolist() == [[True, False, False], [True, True, True]]
    assert Packing(torch.tensor([3, 3]), padded.device).dense


def test_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match="differ in shape"):
        Loss(ObjectiveConfig())(torch.zeros(2, 3), torch.zeros(2, 4), Packing(torch.tensor([2]), CPU))


A = TeacherSpec("a", (4, 8), 2, weight=1.0)
B = TeacherSpec("b", (6, 8), 2, weight=3.0)
STATES = [
    [torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 4.0]]])],
    [torch.tensor([[[5.0, 6.0]]]), torch.tensor([[[7.0, 8.0]]])],
]


def test_layerwise_average():
    average = aggregator("layerwise-average", A, B)
    assert [(t.name, t.size, t.weight) for t in average.targets] == [("average/4+6", 2, 0.5), ("average/8", 2, 0.5)]
    first, second = average.combine(STATES)
    assert first.tolist() == [[[1 / 4 + 15 / 4, 2 / 4 + 18 / 4]]]
    assert second.tolist() == [[[3 / 4 + 21 / 4, 4 / 4 + 24 / 4]]]


def test_layerwise_average_needs_equal_widths():
    with pytest.raises(UserError, match=r"a 2, wide 5; use layerwise-concatenation or separate-heads"):
        aggregator("layerwise-average", A, TeacherSpec("wide", (4, 8), 5))


def test_layerwise_concatenation():
    concatenation = aggregator("layerwise-concatenation", A, B)
    assert [(t.name, t.size) for t in concatenation.targets] == [("concatenation/4+6", 4), ("concatenation/8", 4)]
    first, second = concatenation.combine(STATES)
    assert first.tolist() == [[[1, 2, 5, 6]]]
    assert second.tolist() == [[[3, 4, 7, 8]]]
    parts = concatenation.per_teacher([first, second])
    assert [parts[part].tolist() for part in (("a", "4"), ("b", "6"))] == [[[[1, 2]]], [[[5, 6]]]]


def test_separate_heads():
    separate = aggregator("separate-heads", A, B)
    assert [t.name for t in separate.targets] == ["a/4", "a/8", "b/6", "b/8"]
    assert [t.weight for t in separate.targets] == [1 / 8, 1 / 8, 3 / 8, 3 / 8]
    assert [t.tolist() for t in separate.combine(STATES)] == [
        [[[1, 2]]],
        [[[3, 4]]],
        [[[5, 6]]],
        [[[7, 8]]],
    ]


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_weights_always_add_up_to_one(kind):
    equal = [TeacherSpec(name, (4, 8), 2) for name in "abc"]
    for teachers in (equal[:1], equal[:2], equal):
        assert sum(target.weight for target in aggregator(kind, *teachers).targets) == pytest.approx(1.0)
