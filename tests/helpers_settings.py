"""Drawn settings (hypothesis, the same ones each time): whatever the fields of a section allow."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable

from helpers_models import TINY
from hypothesis import settings
from hypothesis import strategies as st

from s3prl_ekd.config.base import Config, OneOf, Range
from s3prl_ekd.config.parts import Parts
from s3prl_ekd.config.recipe import DistortionConfig, ObjectiveConfig, StudentConfig
from s3prl_ekd.config.training import OptimizerConfig, ScheduleConfig, TrainerConfig
from s3prl_ekd.errors import UserError

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("repeatable")


def values(hint, name: str = "") -> st.SearchStrategy:
    """Plain values that a field of this type may have, by its rules."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        kind, rule = arguments[0], arguments[1]
        if isinstance(rule, Range):
            return numbers(kind, rule)
        if isinstance(rule, OneOf):
            return st.sampled_from(rule.names)
        if isinstance(rule, Parts):
            return st.sampled_from(sorted(rule))
        if kind is str:
            return names()
        return values(kind).map(sorted)  # a range of two numbers
    if origin in (typing.Union, types.UnionType):
        return st.one_of(st.none() if kind is type(None) else values(kind) for kind in arguments)
    if origin is tuple:
        if arguments[-1] is not ...:
            return st.tuples(*map(values, arguments)).map(list)
        return st.lists(values(arguments[0]), min_size=1, max_size=3, unique_by=str)
    if issubclass(hint, Config):
        return mappings(hint)
    if issubclass(hint, enum.Enum):
        return st.sampled_from([item.value for item in hint])
    return {bool: st.booleans(), str: names()}[hint]


def names() -> st.SearchStrategy[str]:
    """Any text, and what YAML would take for something else."""
    return st.sampled_from(["1e-3", "yes", "null", "2024-01-05", "0x10", "~", "[", "a: b", "'", " x", "#"]) | st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8
    ).filter(str.strip)


def numbers(kind: type, rule: Range) -> st.SearchStrategy:
    low = rule.at_least if rule.at_least is not None else rule.more_than
    high = rule.at_most if rule.at_most is not None else rule.less_than
    if kind is int:
        return st.integers(low, high)
    exclude = {"exclude_min": rule.at_least is None, "exclude_max": rule.at_most is None}
    return st.floats(low, high, **exclude)


def mappings(cls: type[Config], **fixed: st.SearchStrategy) -> st.SearchStrategy[dict]:
    """Mappings of a configuration, fields with a default left out here and there."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {name: fixed[name] if name in fixed else values(hint) for name, hint in hints.items()}
    optional = {f.name for f in dataclasses.fields(cls) if f.default is not f.default_factory}
    required = {name: strategy for name, strategy in fields.items() if name not in optional}
    return st.fixed_dictionaries(required, optional={name: fields[name] for name in fields if name in optional})


def students() -> st.SearchStrategy[dict]:
    divisors = st.sampled_from([1, 2, 4])
    fixed = {
        "conv_dim": st.lists(st.integers(1, 20), min_size=7, max_size=7),
        "conv_kernel": st.just([10, 3, 3, 3, 3, 2, 2]),
        "conv_stride": st.just([5, 2, 2, 2, 2, 2, 2]),
        "hidden_size": st.just(24),
        "num_attention_heads": divisors,
        "num_conv_pos_embedding_groups": divisors,
        "num_conv_pos_embeddings": st.integers(1, 20),
        "intermediate_size": st.integers(1, 64),
        "num_hidden_layers": st.integers(1, 3),
        **dict.fromkeys(("head_dim", "remaining_heads", "initialize_from", "copy", "copy_layers"), st.none()),
        "kind": st.just("hubert"),
        "num_buckets": st.just(0),
    }
    alike = mappings(StudentConfig, **fixed).map(lambda found: {**TINY, **found})
    return st.tuples(alike, st.just({}) | layers_that_differ() | relative_positions()).map(lambda two: two[0] | two[1])


def layers_that_differ() -> st.SearchStrategy[dict]:
    def of_so_many(layers: int) -> st.SearchStrategy[dict]:
        heads, inner = (st.lists(st.integers(0, most), min_size=layers, max_size=layers) for most in (5, 30))
        sizes = {"num_attention_heads": heads, "intermediate_size": inner, "head_dim": st.integers(1, 9)}
        return st.fixed_dictionaries({"num_hidden_layers": st.just(layers), **sizes})

    return st.integers(1, 3).flatmap(of_so_many)


def relative_positions() -> st.SearchStrategy[dict]:
    wavlm = {"kind": st.just("wavlm"), "feat_proj_layer_norm": st.just(True), "num_buckets": st.integers(4, 40)}
    return st.fixed_dictionaries({**wavlm, "max_bucket_distance": st.integers(11, 900)})


TEACHER = st.fixed_dictionaries({"name": names(), "mini": st.just("hubert"), "layers": st.just([1, 2])})
TEACHERS = st.lists(TEACHER, min_size=1, max_size=3, unique_by=lambda teacher: teacher["name"])
NO_FOLDER = st.fixed_dictionaries({}, optional={"folder": names()})
FREE = {
    "objective": (ObjectiveConfig, mappings(ObjectiveConfig, losses=st.just([]), learnt_weights=st.none())),
    "distortion": (DistortionConfig, mappings(DistortionConfig, noise=NO_FOLDER)),
    "optimizer": (OptimizerConfig, mappings(OptimizerConfig)),
    "schedule": (ScheduleConfig, mappings(ScheduleConfig)),
    "trainer": (TrainerConfig, mappings(TrainerConfig)),
    "student": (StudentConfig, students()),
}


def refusal(function: Callable[..., object], *arguments: object) -> str | None:
    """What a UserError says; None if there is none."""
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return None
