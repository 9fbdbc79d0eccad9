"""The objective against formulas written by hand."""

from __future__ import annotations

import math

import pytest
import torch

from s3prl_ekd.config.recipe import Aggregation
from s3prl_ekd.errors import UserError
from s3prl_ekd.loss import head_loss
from s3prl_ekd.network.frames import Packing
from s3prl_ekd.targets import RULES, Source

AVERAGE = RULES[Aggregation.LAYERWISE_AVERAGE]
CONCATENATION = RULES[Aggregation.LAYERWISE_CONCATENATION]
SEPARATE = RULES[Aggregation.SEPARATE_HEADS]


def test_loss_by_hand_with_padding():
    prediction = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [9.0, 9.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[-3.0, -4.0], [-7.0, 5.0]]])
    packing = Packing(torch.tensor([2, 1]), prediction.device)  # the last frame is padding and must not count
    loss = head_loss(packing.pack(prediction), packing.pack(target))

    def minus_log_sigmoid(x):
        return math.log(1 + math.exp(-x))

    assert loss.l1.item() == pytest.approx((0 + 1) / 2 + (0 + 1) / 2 + (6 + 8) / 2)
    cosines = [1 / math.sqrt(2), 1.0, -1.0]
    assert loss.cosine.item() == pytest.approx(sum(cosines), abs=1e-6)
    assert loss.cosine_loss.item() == pytest.approx(sum(map(minus_log_sigmoid, cosines)), rel=1e-6)


def test_padding_gets_no_gradient():
    prediction = torch.randn(2, 5, 3, requires_grad=True)
    packing = Packing(torch.tensor([5, 2]), prediction.device)
    loss = head_loss(packing.pack(prediction), torch.zeros(7, 3))
    (loss.l1 + loss.cosine_loss).backward()
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
        head_loss(torch.zeros(2, 3), torch.zeros(2, 4))


A = Source("a", (4, 8), 2, weight=1.0)
B = Source("b", (6, 8), 2, weight=3.0)
STATES = [
    [torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 4.0]]])],
    [torch.tensor([[[5.0, 6.0]]]), torch.tensor([[[7.0, 8.0]]])],
]


def test_layerwise_average():
    targets = AVERAGE.plan([A, B])
    assert [(t.name, t.size, t.weight) for t in targets] == [("average/4+6", 2, 0.5), ("average/8", 2, 0.5)]
    first, second = AVERAGE.combine([A, B], STATES)
    assert first.tolist() == [[[1 / 4 + 15 / 4, 2 / 4 + 18 / 4]]]
    assert second.tolist() == [[[3 / 4 + 21 / 4, 4 / 4 + 24 / 4]]]


def test_layerwise_average_needs_equal_widths():
    with pytest.raises(UserError, match=r"a 2, wide 5; use layerwise-concatenation or separate-heads"):
        AVERAGE.plan([A, Source("wide", (4, 8), 5)])


def test_layerwise_concatenation():
    targets = CONCATENATION.plan([A, B])
    assert [(t.name, t.size) for t in targets] == [("concatenation/4+6", 4), ("concatenation/8", 4)]
    first, second = CONCATENATION.combine([A, B], STATES)
    assert first.tolist() == [[[1, 2, 5, 6]]]
    assert second.tolist() == [[[3, 4, 7, 8]]]
    assert [part.tolist() for part in CONCATENATION.per_teacher([A, B], first, 0)] == [[[[1, 2]]], [[[5, 6]]]]


def test_separate_heads():
    targets = SEPARATE.plan([A, B])
    assert [t.name for t in targets] == ["a/4", "a/8", "b/6", "b/8"]
    assert [t.weight for t in targets] == [1 / 8, 1 / 8, 3 / 8, 3 / 8]
    assert [t.tolist() for t in SEPARATE.combine([A, B], STATES)] == [
        [[[1, 2]]],
        [[[3, 4]]],
        [[[5, 6]]],
        [[[7, 8]]],
    ]


@pytest.mark.parametrize("rule", RULES.values(), ids=[str(name) for name in RULES])
def test_weights_always_add_up_to_one(rule):
    equal = [Source("a", (4, 8), 2), Source("b", (4, 8), 2), Source("c", (4, 8), 2)]
    for sources in (equal[:1], equal[:2], equal):
        assert sum(target.weight for target in rule.plan(sources)) == pytest.approx(1.0)
