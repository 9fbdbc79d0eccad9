"""Gates by themselves, and on a student."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers_models import TINY, speech_like
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from s3prl_ekd import cost
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.network.bypass import may_bypass
from s3prl_ekd.network.encoder import FeedForward
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.pruning.hard_concrete import HardConcrete
from s3prl_ekd.student.model import Student

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
WAVEFORMS = torch.stack([speech_like(8000, seed=0), speech_like(8000, seed=1)])
LENGTHS = torch.tensor([8000, 6000])


def a_student(**settings):
    torch.manual_seed(0)
    return Student(StudentConfig(**TINY | NO_DROPOUT | settings))


def gates_of(student, units=cost.UNITS, **budget):
    return Gates(student, units, budget or {"sparsity": 0.5}, generator=torch.Generator().manual_seed(0))


def rows(student):
    return torch.cat([state.flatten() for state in student(WAVEFORMS, LENGTHS).rows])


# ---- by themselves


def hard_concrete(log_alpha):
    module = HardConcrete(torch.full((len(log_alpha),), 0.5))
    module.log_alpha.data = torch.as_tensor(log_alpha, dtype=torch.float32)
    return module


def test_the_expected_number_of_open_gates_is_the_papers():
    log_alpha = torch.linspace(-6, 6, 12)
    gates = hard_concrete(log_alpha)
    by_hand = [1 / (1 + math.exp(-(a - 2 / 3 * math.log(0.1 / 1.1)))) for a in log_alpha.tolist()]
    assert gates.probability().tolist() == pytest.approx(by_hand, rel=1e-5)
    assert gates.probability().sum().item() == pytest.approx(7.4595, abs=1e-4)


def test_samples_are_open_as_often_as_expected_and_the_mean_is_theirs():
    gates = hard_concrete(torch.linspace(-6, 6, 12).repeat(20_000, 1).flatten())
    torch.manual_seed(0)
    samples = gates.sample().view(20_000, 12)
    assert samples.min() == 0
    assert samples.max() == 1
    single = hard_concrete(torch.linspace(-6, 6, 12))
    torch.testing.assert_close((samples > 0).float().mean(0), single.probability(), atol=0.015, rtol=0)
    torch.testing.assert_close(samples.mean(0), single.mean(), atol=0.015, rtol=0)


def test_the_mean_is_that_of_the_definition():
    """Over the uniform variable on a fine grid."""
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for log_alpha in torch.linspace(-10, 10, 41).tolist():
        s = torch.sigmoid((torch.logit(uniform) + log_alpha) / (2 / 3))
        mean = (1.2 * s - 0.1).clamp(0, 1).mean()
        assert hard_concrete([log_alpha]).mean().item() == pytest.approx(mean.item(), abs=0.005)


def test_gates_start_at_their_drop_rates():
    gates = HardConcrete(torch.tensor([0.01, 0.5]).repeat_interleave(1000), generator=torch.Generator().manual_seed(0))
    closed, half = gates.log_alpha.view(2, 1000).mean(1).tolist()
    assert (closed, half) == (pytest.approx(math.log(99), abs=2e-3), pytest.approx(0, abs=2e-3))
    assert gates.log_alpha.view(2, 1000).std(1).tolist() == pytest.approx([0.01, 0.01], rel=0.1)


# ---- on a student


@pytest.mark.parametrize("width", [15, 16])
def test_a_gated_student_is_one_whose_next_weights_are_multiplied(width):
    student = a_student(num_conv_pos_embeddings=width)
    gates = gates_of(student)
    torch.manual_seed(1)
    with gates.attached(student):
        gated = rows(student)
    torch.manual_seed(1)
    z = {(group.unit, group.layer): value for group, value in zip(gates.groups, _drawn(gates), strict=True)}
    pairs = z["positions", 0]
    taps = torch.cat([pairs.flip(0), torch.ones(2 - width % 2), pairs])
    assert len(taps) == width
    by_hand = copy.deepcopy(student)
    with torch.no_grad():
        layers = by_hand.feature_extractor.conv_layers
        for layer, following in enumerate([*(one.conv for one in layers[1:]), by_hand.feature_projection.projection]):
            following.weight.copy_(torch.einsum("oi...,i->oi...", following.weight, z["conv", layer]))
        for index, layer in enumerate(by_hand.encoder.layers):
            heads = z["heads", index].repeat_interleave(6)
            layer.attention.out_proj.weight.copy_(layer.attention.out_proj.weight * heads)
            inner = z["intermediate", index]
            layer.feed_forward.output_dense.weight.copy_(layer.feed_forward.output_dense.weight * inner)
        by_hand.encoder.pos_conv_embed.conv.parametrizations.weight.original0.mul_(taps)
    torch.testing.assert_close(gated, rows(by_hand))
    assert not torch.allclose(gated, rows(student), atol=1e-3)


def _drawn(gates):
    return gates.by_group(gates.hard_concrete.sample())


def test_the_outermost_taps_go_first():
    gates = gates_of(a_student(), units=["positions"], parameters=15000)
    gates.hard_concrete.log_alpha.data.zero_()
    for seed in range(20):
        torch.manual_seed(seed)
        (pairs,) = _drawn(gates)
        is_open = (pairs > 0).tolist()
        assert is_open == sorted(is_open, reverse=True)
        assert pairs.tolist() == sorted(pairs.tolist(), reverse=True)
    p = gates.hard_concrete.probability()[0].item()  # of 7 pairs around two taps
    assert gates.expected_counts().positions[0].item() == pytest.approx(2 + 2 * sum(p**i for i in range(1, 8)))


@pytest.mark.parametrize("student_is_training", [True, False])
def test_the_student_is_as_before_afterwards_also_after_an_error(student_is_training):
    student = a_student(feat_proj_layer_norm=True).train(student_is_training)
    gates = gates_of(student)
    names, before = [name for name, _ in student.named_parameters()], list(student.parameters())
    output = rows(student)
    with gates.attached(student):
        assert not torch.equal(rows(student), output)
    with pytest.raises(ValueError, match="an utterance of 5 samples"), gates.attached(student):
        student(WAVEFORMS[:, :5])
    assert [name for name, _ in student.named_parameters()] == names
    assert all(now is then for now, then in zip(student.parameters(), before, strict=True))
    assert torch.equal(rows(student), output)


def test_gradients_reach_every_parameter_and_every_gate():
    student = a_student()
    gates = gates_of(student)
    with gates.attached(student):
        loss = rows(student).square().sum()
    penalty, _ = gates.penalty(10)
    (loss + penalty).backward()
    for name, parameter in (*student.named_parameters(), *gates.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_fast_forms_stay():
    student = a_student()
    with gates_of(student).attached(student):
        assert student.feature_extractor._by_products(WAVEFORMS)
        assert student.encoder.pos_conv_embed._weight_normed()
        for layer in student.encoder.layers:
            assert all(may_bypass(module, nn.Linear) for module in layer.modules() if isinstance(module, nn.Linear))


def test_a_seed_determines_gates_and_dropout():
    student = a_student(hidden_dropout=0.5).train()
    gates = gates_of(student)

    def once(seed):
        torch.manual_seed(seed)
        with gates.attached(student):
            return rows(student)

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


@pytest.mark.slow
def test_compiled_feed_forward_blocks_have_gates_too():
    student = a_student()
    gates = gates_of(student)

    def gradient():
        torch.manual_seed(3)
        student.zero_grad()
        gates.zero_grad()
        with gates.attached(student):
            rows(student).square().sum().backward()
        return [parameter.grad for parameter in (*student.parameters(), gates.hard_concrete.log_alpha)]

    plain = gradient()
    for module in student.modules():
        if isinstance(module, FeedForward):
            module.compile(backend="aot_eager", dynamic=True)
    torch.testing.assert_close(gradient(), plain)
    torch.testing.assert_close(gradient(), plain)


class Training(nn.Module):
    """Student and gates as one module, as a training loop has them."""

    def __init__(self, student, gates):
        super().__init__()
        self.student, self.gates = student, gates

    def forward(self):
        with self.gates.attached(self.student):
            return rows(self.student).square().sum() + self.gates.penalty(5)[0]


@pytest.mark.parametrize("bf16", [False, True])
def test_gates_work_in_several_processes_and_in_mixed_precision(bf16):
    """One process, in which DDP still refuses parameters that the loss does not reach."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        student = a_student()
        training = DistributedDataParallel(Training(student, gates_of(student)))
        for _ in range(2):
            training.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = training()
            loss.backward()
            assert all(parameter.grad.isfinite().all() for parameter in training.parameters())
            assert training.module.gates.hard_concrete.log_alpha.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


# ---- what they are expected to cost


@pytest.mark.parametrize("kind", cost.COSTS)
@pytest.mark.parametrize("width", [15, 16])
def test_expected_costs_are_real_ones_where_every_gate_is_saturated(kind, width):
    student = a_student(num_conv_pos_embeddings=width)
    gates = gates_of(student)
    saturated = torch.where(
        torch.rand(len(gates.hard_concrete.log_alpha), generator=torch.Generator().manual_seed(0)) > 0.3, 40.0, -40.0
    )
    gates.hard_concrete.log_alpha.data = saturated
    probabilities = gates.by_group(gates.hard_concrete.probability())
    numbers = [int(probability.sum().round()) for probability in probabilities]
    assert [round(p.sum().item(), 4) for p in probabilities] == numbers
    sizes = iter(numbers)
    conv, heads, inner = ([next(sizes) for _ in range(n)] for n in (7, 2, 2))
    by_hand = cost.UnitCounts(conv=conv, heads=heads, intermediate=inner, positions=[2 - width % 2 + 2 * next(sizes)])
    assert gates.expected_cost(kind).item() == pytest.approx(cost.COSTS[kind](gates.sizes, by_hand), rel=1e-6)


def test_units_without_gates_count_in_full():
    student = a_student()
    counts = gates_of(student, units=["heads"], parameters=16000).expected_counts()
    assert (counts.conv, counts.intermediate, counts.positions) == ((16,) * 7, (48,) * 2, (16,))
    assert all(0 < heads < 4 for heads in counts.heads)
