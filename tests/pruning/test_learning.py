"""Gates find the units that a student does not need."""

from __future__ import annotations

import torch
from helpers_models import TINY, speech_like

from s3prl_ekd import cost
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.pruning.units import counts_with
from s3prl_ekd.student.model import Student

WAVEFORMS = torch.stack([speech_like(8000, seed=0), speech_like(8000, seed=1)])
LENGTHS = torch.tensor([8000, 6000])


def a_student_and_its_useful_units():
    """Half of the units of every kind are read by nothing; of each group, True at the others."""
    torch.manual_seed(0)
    student = Student(StudentConfig(**TINY)).eval().requires_grad_(False)
    for parameter in student.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    weights, useful = dict(student.named_parameters()), []
    for group in Gates(student, cost.UNITS, {"sparsity": 0.5}).groups:
        mask = torch.rand(group.size).argsort() < (group.size + 1) // 2
        useful.append(mask.sort(descending=True).values if group.nested else mask)
        weights[group.weight].mul_(group.factor(useful[-1].float()))
    return student, useful


def test_what_nothing_reads_is_pruned():
    """To the size of the student without it, by learning the student's own hidden states."""
    student, useful = a_student_and_its_useful_units()
    sizes, counts = cost.FixedSizes.of(student.config), cost.UnitCounts.of(student.config)
    groups = Gates(student, cost.UNITS, {"sparsity": 0.5}).groups
    budget = cost.parameters(sizes, counts_with(counts, groups, [int(mask.sum()) for mask in useful]))
    gates = Gates(student, cost.UNITS, {"parameters": budget}, warmup_steps=50, drop_rate=0.1)
    optimizer = torch.optim.AdamW(gates.parameter_groups(0.15), betas=(0.9, 0.98))
    targets = student(WAVEFORMS, LENGTHS).rows
    for step in range(100):
        optimizer.zero_grad()
        with gates.attached(student):
            rows = student(WAVEFORMS, LENGTHS).rows
        distance = sum((a - b).square().mean() / b.var() for a, b in zip(rows, targets, strict=True))
        (1000 * distance + gates.penalty(step)[0]).backward()
        optimizer.step()
    kept = gates.kept()
    for unit in cost.UNITS:
        mine = [(k, u) for group, k, u in zip(groups, kept, useful, strict=True) if group.unit == unit]
        units, wrong = sum(int(k.sum()) for k, _ in mine), sum(int((k & ~u).sum()) for k, u in mine)
        assert wrong <= 0.1 * units, f"{unit}: {wrong} of {units} do nothing"  # chance: half of them
