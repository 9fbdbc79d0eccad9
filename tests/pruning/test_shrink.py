"""A shrunk student is the masked one, everywhere where pruning has been seen to change the function."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers_models import TINY, speech_like

from s3prl_ekd import cost
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.pruning.shrink import shrink
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student

LARGE = {"conv_layer_norm": True, "conv_bias": True, "do_stable_layer_norm": True, "feat_proj_layer_norm": True}
WAVLM = {"kind": "wavlm", "num_buckets": 20, "max_bucket_distance": 40, "feat_proj_layer_norm": True}
KINDS = {
    "distilhubert": {},
    "hubert": {"feat_proj_layer_norm": True, "num_conv_pos_embeddings": 15},
    "hubert-large": LARGE,
    "dphubert": {"feat_proj_layer_norm": True, "feature_scale": True},
    "wavlm": WAVLM,
    "wavlm-large": LARGE | WAVLM,
}
WAVEFORMS = torch.stack([speech_like(8000, seed=0), speech_like(8000, seed=1)])
LENGTHS = torch.tensor([8000, 6000])


def a_student(**settings):
    """With weights that are nowhere zero or one, norms and biases included."""
    torch.manual_seed(0)
    student = Student(StudentConfig(**TINY | settings)).eval()
    for parameter in student.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    if student.feature_projection.scale is not None:
        student.feature_projection.scale.uniform_(0.3, 1.0)
    return student


def gates_of(student, sparsity=0.4, units=cost.UNITS):
    gates = Gates(student, units, {"sparsity": sparsity}, generator=torch.Generator().manual_seed(0))
    gates.hard_concrete.log_alpha.data.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    return gates.eval()


def difference(student, smaller, gates):
    """The largest between hidden states, relative to each state's largest value."""
    with torch.no_grad(), gates.attached(student):
        masked = student(WAVEFORMS, LENGTHS).rows
    with torch.no_grad():
        shrunk = smaller(WAVEFORMS, LENGTHS).rows
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(masked, shrunk, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
def test_shrunk_is_masked(kind, double):
    student = a_student(**KINDS[kind])
    student = student.double() if double else student
    gates = gates_of(student)
    before = copy.deepcopy(student.state_dict())
    smaller = shrink(student, gates)
    # In single precision a student with seven LayerNorms is itself only right to 1.5e-6.
    assert difference(student, smaller, gates) < (1e-12 if double else 3e-6)
    with torch.no_grad():  # it is not the student without gates
        assert (student(WAVEFORMS, LENGTHS).rows[-1] - smaller(WAVEFORMS, LENGTHS).rows[-1]).abs().max() > 1e-2
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_student_costs_what_was_counted(kind):
    student = a_student(**KINDS[kind])
    gates = gates_of(student)
    smaller = shrink(student, gates)
    counts = gates.kept_counts()
    assert cost.UnitCounts.of(smaller.config) == cost.UnitCounts(
        conv=tuple(counts.conv),
        heads=tuple(counts.heads),
        intermediate=tuple(counts.intermediate),
        positions=tuple(counts.positions),
    )
    real = sum(parameter.numel() for parameter in smaller.parameters())
    assert real == smaller.config.parameters == cost.parameters(gates.sizes, counts)
    assert 0.98 * gates.budget.amount < real <= gates.budget.amount


@pytest.mark.parametrize("kind", ["hubert-large", "wavlm"])
@pytest.mark.parametrize("lost", ["heads", "intermediate"])
def test_a_layer_that_loses_all_keeps_its_biases(kind, lost):
    student = a_student(**KINDS[kind])
    gates = gates_of(student)
    parts = gates.hard_concrete.log_alpha.data.split([group.size for group in gates.groups])
    for group, log_alpha in zip(gates.groups, parts, strict=True):
        if group.unit == lost and group.layer == 0:
            log_alpha.fill_(-30)
    smaller = shrink(student, gates)
    assert getattr(cost.UnitCounts.of(smaller.config), lost)[0] == 0
    assert difference(student, smaller, gates) < 1e-6
    loss = smaller.train()(WAVEFORMS, LENGTHS).rows[-1].square().sum()
    loss.backward()  # training goes on


@pytest.mark.parametrize("unit", cost.UNITS)
def test_one_kind_of_unit_alone(unit):
    student = a_student(**KINDS["wavlm"])
    gates = gates_of(student, sparsity=0.05, units=[unit])
    smaller = shrink(student, gates)
    assert difference(student, smaller, gates) < 1e-6
    changed = [name for name in cost.UNITS if getattr(gates.kept_counts(), name) != getattr(gates.counts, name)]
    assert changed == [unit]


def test_a_smaller_student_can_shrink_again():
    student = a_student(**KINDS["wavlm"])
    smaller = shrink(student, gates_of(student))
    gates = gates_of(smaller, sparsity=0.2)
    smallest = shrink(smaller, gates)
    assert difference(smaller, smallest, gates) < 1e-6
    assert smallest.config.parameters <= 0.8 * smaller.config.parameters


def test_prediction_heads_and_mode_stay():
    student = a_student().train()
    smaller = shrink(student, gates_of(student))
    assert smaller.training
    heads = PredictionHeads(student.config.hidden_size, [8, 8])
    assert [tuple(one.shape[-1:]) for one in heads(smaller(WAVEFORMS, LENGTHS).rows)] == [(8,), (8,)]


@pytest.mark.parametrize("kind", ["hubert", "hubert-large"])
def test_layer_norms_see_only_open_channels_in_training_too(kind):
    """A sampled student is the student of the open channels alone, whose weights have the gates."""
    student = a_student(**KINDS[kind])
    gates = gates_of(student, units=["conv"], sparsity=0.1).train()
    torch.manual_seed(5)
    with torch.no_grad(), gates.attached(student):
        sampled = student(WAVEFORMS, LENGTHS).rows
    torch.manual_seed(5)
    values = gates.by_group(gates.hard_concrete.sample())
    kept = [value > 0 for value in values]
    assert not all(mask.all() for mask in kept)
    gates.kept, gates.final = lambda: kept, lambda kept: values
    with torch.no_grad():
        alone = shrink(student, gates)(WAVEFORMS, LENGTHS).rows
    for one, other in zip(sampled, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
