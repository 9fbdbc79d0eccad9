"""The smaller student of a gated one: the same function without the units that go."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s3prl_ekd.config.layer_sizes import kept_heads
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.pruning.units import Heads, counts_with
from s3prl_ekd.student.model import Student


@torch.no_grad()
def shrink(student: Student, gates: Gates) -> Student:
    """A new student that computes what the old one does with ``gates`` in eval mode; in the old one's mode and place.

    Gates of units that stay are multiplied into the next linear map's weights. Hidden states keep their width, so
    prediction heads fit as before.
    """
    state, kept = student.state_dict(), gates.kept()
    for group, values, stays in zip(gates.groups, gates.final(kept), kept, strict=True):
        state[group.weight] = state[group.weight] * group.factor(values)
        group.drop(state, stays.to(values.device))
    smaller = Student(smaller_config(student.config, gates, kept)).to(student.like)
    smaller.load_state_dict(state)
    return smaller.train(student.training)


def smaller_config(config: StudentConfig, gates: Gates, kept: Sequence[Tensor]) -> StudentConfig:
    """The settings of a student of ``config`` of whose units only those are left."""
    counts = counts_with(gates.counts, gates.groups, [int(stays.sum()) for stays in kept])
    sizes: dict[str, Any] = {
        "conv_dim": tuple(counts.conv),
        "intermediate_size": _one_number(counts.intermediate),
        "num_conv_pos_embeddings": counts.positions[0],
    }
    if tuple(counts.heads) != tuple(gates.counts.heads):
        sizes |= {"num_attention_heads": _one_number(counts.heads), "head_dim": gates.sizes.head_dim}
        if config.num_buckets:
            masks = [mask.tolist() for group, mask in zip(gates.groups, kept, strict=True) if isinstance(group, Heads)]
            pairs = zip(kept_heads(config), masks, strict=True)
            sizes["remaining_heads"] = tuple(tuple(itertools.compress(heads, mask)) for heads, mask in pairs)
    return dataclasses.replace(config, **sizes)


def _one_number(sizes: Sequence[int]) -> int | tuple[int, ...]:
    """Of all layers, where they have the same."""
    return sizes[0] if len(set(sizes)) == 1 and sizes[0] > 0 else tuple(sizes)
