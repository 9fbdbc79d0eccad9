"""What holds for all settings: they are accepted and come back, or are refused by name (hypothesis)."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from helpers_settings import FREE, TEACHERS, mappings, names, refusal
from hypothesis import given
from hypothesis import strategies as st

from s3prl_ekd.config.base import Config, apply_override, differences
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.config.recipe import DistillConfig, ObjectiveConfig, TeacherConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.files import parse_yaml


def same_again(config: Config) -> None:
    """From plain values, and from YAML text, comes the same."""
    plain = config.to_mapping()
    assert type(config).from_mapping(plain) == config
    assert type(config).from_saved(plain, "it") == config
    assert differences(config, plain) == []
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    assert type(config).from_mapping(parse_yaml(text)) == config


@pytest.mark.parametrize("section", FREE)
def test_settings_within_their_ranges_are_accepted_and_come_back(section):
    cls, strategy = FREE[section]

    @given(strategy)
    def law(mapping):
        same_again(cls.from_mapping(mapping, section))

    law()


@given(
    st.fixed_dictionaries({"teachers": TEACHERS, "student": FREE["student"][1], "distortion": FREE["distortion"][1]})
)
def test_model_sides_come_back(mapping):
    same_again(DistillConfig.from_mapping(mapping))


@given(mappings(DataConfig), FREE["optimizer"][1], TEACHERS, names())
def test_whole_recipes_are_refused_by_name_or_come_back(data, optimizer, teachers, output):
    mapping = {"data": data, "optimizer": optimizer, "teachers": teachers, "output": output}
    said = refusal(RunConfig.from_mapping, mapping)
    if said is None:
        same_again(RunConfig.from_mapping(mapping))
    else:
        assert said.startswith(("data.", "data: "))  # crops and batches, which depend on each other; equal manifests


@given(mappings(ObjectiveConfig))
def test_objectives_are_refused_by_name_or_come_back(mapping):
    said = refusal(ObjectiveConfig.from_mapping, mapping, "objective")
    if said is None:
        same_again(ObjectiveConfig.from_mapping(mapping))
    else:
        assert said.startswith("objective")  # a term twice, another term's setting, weights of what has none ...


@given(mappings(TeacherConfig))
def test_teachers_are_refused_by_name_or_come_back(mapping):
    said = refusal(TeacherConfig.from_mapping, mapping, "teachers[0]")
    if said is None:
        same_again(TeacherConfig.from_mapping(mapping))
    else:
        assert said.startswith("teacher ")  # without a source, or with several


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), part, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({field.name for cls, _ in FREE.values() for field in dataclasses.fields(cls)})


@given(
    st.sampled_from(sorted(FREE)), st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), ANYTHING, max_size=2)
)
def test_whatever_a_section_holds_is_accepted_or_refused_by_its_name(section, mapping):
    said = refusal(FREE[section][0].from_mapping, mapping, section)
    assert said is None or (f"{section}." in said or f"{section}:" in said or f"{section} " in said)
    assert said is None or len(said) <= 500


PATHS = st.lists(st.sampled_from(["teachers", "0", "1", "²", "a", ".", "=", "["]), max_size=8).map("".join)


@given(st.text(max_size=20) | PATHS)
def test_overrides_are_set_or_user_errors(text):
    mapping = {"teachers": [{"a": 1}], "a": {"b": 2}}
    said = refusal(apply_override, mapping, text)
    assert "=" in text if said is None else said.isprintable()
