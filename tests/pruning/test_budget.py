"""Budgets: what can be reached, how it is reached, and which units stay."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers_models import TINY

from s3prl_ekd import cost
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.pruning.budget import Budget
from s3prl_ekd.pruning.choice import choose
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.student.model import Student

STUDENT = Student(StudentConfig(**TINY))
SIZES, COUNTS = cost.FixedSizes.of(STUDENT.config), cost.UnitCounts.of(STUDENT.config)


# ---- what can be reached


def test_a_budget_is_a_kind_of_cost_and_an_amount():
    full = cost.parameters(SIZES, COUNTS)
    assert cost.allowance({"parameters": 1e4}, SIZES, COUNTS, cost.UNITS) == ("parameters", 1e4)
    assert cost.allowance({"sparsity": 0.25}, SIZES, COUNTS, cost.UNITS) == ("parameters", 0.75 * full)
    assert cost.allowance({"multiply_adds": 1e6}, SIZES, COUNTS, cost.UNITS) == ("multiply_adds", 1e6)


def test_a_budget_out_of_reach_is_refused_with_the_least():
    by_hand = cost.UnitCounts(conv=[1] * 7, heads=[0] * 2, intermediate=[0] * 2, positions=[2])
    for kind, count in cost.COSTS.items():
        least = count(SIZES, by_hand)
        assert cost.allowance({kind: least}, SIZES, COUNTS, cost.UNITS) == (kind, least)
        with pytest.raises(UserError, match=rf"pruning.budget.{kind}: .* the least is {math.ceil(least)}$"):
            cost.allowance({kind: least - 1}, SIZES, COUNTS, cost.UNITS)
    heads = cost.parameters(SIZES, dataclasses.replace(COUNTS, heads=[0, 0]))
    with pytest.raises(UserError, match=f"by pruning heads; the least is {heads}$"):
        cost.allowance({"parameters": heads - 1}, SIZES, COUNTS, ["heads"])
    share = 1 - cost.parameters(SIZES, by_hand) / cost.parameters(SIZES, COUNTS)
    most = math.floor(10_000 * share) / 10_000
    cost.allowance({"sparsity": most}, SIZES, COUNTS, cost.UNITS)
    with pytest.raises(UserError, match=f"sparsity: 0.999 cannot be reached .*; the most is {most}$"):
        cost.allowance({"sparsity": 0.999}, SIZES, COUNTS, cost.UNITS)


def test_budgets_and_units_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"leaves nothing to prune; the student has 16832 parameters"):
        cost.allowance({"parameters": 16832}, SIZES, COUNTS, cost.UNITS)
    with pytest.raises(UserError, match=r"unknown unit 'head'; did you mean 'heads'"):
        Gates(STUDENT, ["head"], {"sparsity": 0.5})


# ---- how it is reached


def test_the_penalty_is_the_lagrangian_of_a_moving_target():
    budget = Budget("parameters", 40.0, full=200.0, initial=180.0, warmup_steps=10)
    assert [budget.target(step).item() for step in (0, 5, 10, 1000)] == pytest.approx([180, 110, 40, 40])
    budget.lambdas.data = torch.tensor([3.0, 5.0])
    cost_now = torch.tensor(120.0, requires_grad=True)
    penalty, logged = budget.penalty(cost_now, 5)
    error = (120 - 110) / 200
    assert penalty.item() == pytest.approx(3 * error + 5 * error**2)
    penalty.backward()
    assert cost_now.grad.item() == pytest.approx((3 + 2 * 5 * error) / 200)
    assert budget.lambdas.grad.tolist() == pytest.approx([error, error**2])
    logged = {name: value.item() for name, value in logged.items()}
    assert logged == {"expected_cost": 120, "target_cost": 110, "lambda1": 3, "lambda2": 5}


@pytest.mark.parametrize("budget", [{"sparsity": 0.6}, {"multiply_adds": 2_000_000}])
def test_training_meets_the_budget(budget):
    """By the penalty alone; the optimizer is that of training."""
    gates = Gates(STUDENT, cost.UNITS, budget, warmup_steps=150, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(gates.parameter_groups(0.1), betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(300):
        optimizer.zero_grad()
        penalty, logged = gates.penalty(step)
        penalty.backward()
        optimizer.step()
    assert logged["expected_cost"].item() == pytest.approx(gates.budget.amount, rel=0.02)
    real = cost.COSTS[gates.budget.kind](gates.sizes, gates.kept_counts())
    assert 0.99 * gates.budget.amount < real <= gates.budget.amount


def test_training_goes_on_from_a_saved_state():
    first, second = (Gates(STUDENT, cost.UNITS, {"sparsity": 0.5}) for _ in range(2))
    first.hard_concrete.log_alpha.data.normal_()
    first.budget.lambdas.data.normal_()
    first.budget.initial.fill_(7.0)
    second.load_state_dict(first.state_dict())
    assert [value.item() for value in first.penalty(3)[1].values()] == [
        value.item() for value in second.penalty(3)[1].values()
    ]


# ---- which units stay


def test_each_group_keeps_as_many_as_its_gates_expect_where_that_is_the_budget():
    probabilities = [torch.tensor([0.9, 0.1, 0.9, 0.1]), torch.tensor([0.6] * 5), torch.tensor([1.0, 0.5, 0.4])]
    kept = choose(probabilities, [0, 0, 0], lambda numbers: sum(numbers) <= 7)
    assert [mask.tolist() for mask in kept] == [
        [True, False, True, False],
        [True, True, True, False, False],
        [True, True, False],
    ]


def test_nested_units_go_from_the_end_however_probabilities_are_rounded():
    probabilities = [torch.tensor([0.9, 0.5, 0.5 + 2**-20, 0.4]), torch.tensor([0.1, 0.9])]
    kept = choose(probabilities, [0, 0], lambda numbers: numbers[0] <= 2 and numbers[1] <= 1, [True, False])
    assert [mask.tolist() for mask in kept] == [[True, True, False, False], [False, True]]


def test_what_is_left_over_goes_to_units_that_are_small_enough():
    probabilities = [torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.3, 0.2, 0.1, 0.0])]
    kept = choose(probabilities, [0, 0], lambda numbers: 10 * numbers[0] + numbers[1] <= 23)
    assert [int(mask.sum()) for mask in kept] == [2, 3]
    assert kept[1].tolist() == [True, True, True, False]


def test_the_least_stays_however_improbable():
    probabilities = [torch.tensor([0.0, 1e-9]), torch.tensor([1.0, 1.0])]
    kept = choose(probabilities, [1, 0], lambda numbers: 5 * numbers[0] + numbers[1] <= 6)
    assert [mask.tolist() for mask in kept] == [[False, True], [True, False]]


@pytest.mark.parametrize("kind", cost.COSTS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_the_real_cost_is_the_budget_or_just_below_it(kind, share, seed):
    """Also of a tiny student, whose heads are large steps, and with gates that are far from the budget."""
    generator = torch.Generator().manual_seed(seed)
    least, full = (cost.COSTS[kind](SIZES, counts) for counts in (COUNTS.least(cost.UNITS), COUNTS))
    gates = Gates(STUDENT, cost.UNITS, {kind: least + share * (full - least)})
    gates.hard_concrete.log_alpha.data = 4 * torch.randn(len(gates.hard_concrete.log_alpha), generator=generator)
    counts = gates.kept_counts()
    real = cost.COSTS[kind](gates.sizes, counts)
    assert 0.98 * gates.budget.amount < real <= gates.budget.amount
    assert min(counts.conv) >= 1
    assert counts.positions[0] % 2 == 0


def test_choosing_among_the_units_of_hubert_base_takes_no_time():
    """40,648 gates, so nothing may be tried unit by unit."""
    calls = 0

    def affordable(numbers):
        nonlocal calls
        calls += 1
        return numbers[0] * 100 + sum(numbers[1:]) <= 30_000

    kept = choose([torch.rand(12), *(torch.rand(3072) for _ in range(12))], [0] * 13, affordable)
    assert sum(int(mask.sum()) for mask in kept[1:]) + 100 * int(kept[0].sum()) == 30_000
    assert calls < 200


def test_every_unit_of_hubert_base_can_have_a_gate():
    with torch.device("meta"):
        student = Student(StudentConfig(num_hidden_layers=12))
    gates = Gates(student, cost.UNITS, {"sparsity": 0.75})
    assert len(gates.hard_concrete.log_alpha) == 7 * 512 + 12 * 12 + 12 * 3072 + 63
    # DPHuBERT's start: feed-forward blocks open to 83 %, all else nearly so.
    share = 1 - gates.budget.initial.item() / cost.parameters(gates.sizes, gates.counts)
    assert share == pytest.approx(0.102, abs=0.003)
