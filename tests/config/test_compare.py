"""Settings compared and overridden by their names, and who depends on which setting."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import typing
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3prl_ekd.config.base import Config, apply_override, differences, say_differences, set_value
from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig
from s3prl_ekd.config.training import FREE_ON_RESUME, RunConfig
from s3prl_ekd.cuts import stream
from s3prl_ekd.errors import UserError
from s3prl_ekd.superb import evaluation
from s3prl_ekd.target_cache import settings

TEACHER = {"name": "a", "mini": "hubert", "layers": [2, 4]}
RECIPE = {"teachers": [TEACHER, {**TEACHER, "name": "b"}], "data": {"cuts": ["train"]}, "output": "run"}


def test_differences_are_named_in_order():
    before = RunConfig.from_mapping(RECIPE)
    teachers = [TEACHER, {**TEACHER, "name": "b", "layers": [4]}]
    now = RunConfig.from_mapping({**RECIPE, "teachers": teachers, "seed": 3}).to_mapping()
    found = differences(before, {"data": now["data"], **now, "new": {"key": 1}})
    assert [tuple(one) for one in found[:2]] == [("teachers[1].layers", [2, 4], [4]), ("seed", 0, 3)]
    assert say_differences(found[2:]) == "new: absent there, {'key': 1} here"


def test_what_is_on_one_side_only_is_absent():
    (one,) = differences({"a": {"b": 1}, "c": []}, {"a": {}, "c": []})
    assert say_differences([one]) == "a.b: 1 there, absent here"
    found = differences({"t": [{"x": 1}]}, {"t": [{"x": 1}, {"x": 2}]})
    assert say_differences(found, "{name} is {now}, was {before}") == "t is [{'x': 1}, {'x': 2}], was [{'x': 1}]"


def test_what_is_free_may_differ():
    before = {"data": {"cuts": ["a"], "workers": 1}, "teachers": [{"weight": 1, "name": "a"}]}
    now = {"data": {"cuts": ["b"], "workers": 2}, "teachers": [{"weight": 2, "name": "a"}]}
    names = [one.name for one in differences(before, now)]
    assert names == ["data.cuts", "data.workers", "teachers[0].weight"]
    assert [one.name for one in differences(before, now, {"data.workers", "teachers.weight"})] == ["data.cuts"]
    assert differences(before, now, {"data", "teachers"}) == []


def test_saved_settings_of_another_version():
    config = DistillConfig.from_mapping({"teachers": [TEACHER]})
    saved = config.to_mapping()
    del saved["objective"]["cosine_weight"], saved["distortion"]
    assert DistillConfig.from_saved(saved, "it") == config
    saved["objective"]["mse_weight"] = 1.0
    with pytest.raises(UserError, match=r"it: unknown key 'objective.mse_weight'; .*another version .* wrote it"):
        DistillConfig.from_saved(saved, "it")


def test_an_override_makes_the_sections_it_is_in():
    mapping = {"teachers": [{"layers": [1]}], "data": None}
    for name, value in (("data.x.y", 1), ("teachers.0.weight", 2), ("teachers.0.layers.0", 3)):
        set_value(mapping, name, value)
    assert mapping == {"teachers": [{"layers": [3], "weight": 2}], "data": {"x": {"y": 1}}}


# ---- laws, tried on drawn settings (hypothesis, the same ones each time)

law = hypothesis.settings(derandomize=True, deadline=None, database=None, max_examples=60)
VALUES = st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2))
TREES = st.recursive(
    st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3),
    lambda tree: st.dictionaries(st.sampled_from("abc"), VALUES | tree, max_size=3),
    max_leaves=6,
)


@law
@given(TREES, TREES)
def test_differences_lead_from_one_to_the_other(before, now):
    assert differences(before, before) == []
    found = differences(before, now)
    assert (found == []) == (before == now)
    assert {one.name for one in differences(now, before)} == {one.name for one in found}
    changed = copy.deepcopy(before)
    for one in found:
        if repr(one.now) != "absent":
            set_value(changed, one.name, one.now)
    assert all(repr(one.now) == "absent" for one in differences(changed, now))


@law
@given(st.data())
def test_an_override_changes_its_setting_alone(data):
    before = RunConfig.from_mapping(RECIPE).to_mapping()
    section = data.draw(st.sampled_from([name for name in before if isinstance(before[name], dict)]))
    key = data.draw(st.sampled_from([key for key in before[section] if not isinstance(before[section][key], dict)]))
    value = data.draw(VALUES.filter(lambda value: value != before[section][key]))
    now = copy.deepcopy(before)
    apply_override(now, f"{section}.{key}={json.dumps(value)}")
    assert [tuple(one) for one in differences(before, now)] == [(f"{section}.{key}", before[section][key], value)]


# ---- who depends on which setting

# Every setting of a recipe, and who refuses a change of it: "run" a resumed run, "cache" a cache of targets, "place" a
# position in the data. A setting that is new is taken to matter to all that see it; whoever adds it writes it here, and
# into FREE_ON_RESUME, target_cache.settings.FREE or cuts.stream.FREE where it does not.
DEPENDENT = """
student                    run        kind
student                    run        conv_dim conv_kernel conv_stride hidden_size num_hidden_layers num_attention_heads
student                    run        intermediate_size num_conv_pos_embeddings num_conv_pos_embedding_groups
student                    run        hidden_dropout attention_dropout activation_dropout feature_grad_scale
student                    run        normalize_waveform initialize_from head_dim conv_bias conv_layer_norm
student                    run        feat_proj_layer_norm do_stable_layer_norm layer_norm_eps num_buckets
student                    run        max_bucket_distance remaining_heads copy copy_layers feature_scale
student                    run        normalization_eps
teachers                   run,cache  s3prl transformers mini student ckpt layers layer_norm_targets
teachers                   run,cache  normalize_waveform
teachers                   run,cache  units principal_components
teachers                   run        name weight own_forward
heads                      run        kind from initialize share
objective                  run,cache  aggregation
objective                  run        cosine_weight losses learnt_weights loss_on_padding
distortion                 run        teacher_input seed
distortion.reverberation   run        folder probability
distortion.noise           run        folder probability snr_db
distortion.gaussian_noise  run        probability snr_db
data                       run        cuts dev_cuts
data                       run,place  max_batch_utterances num_buckets buffer_cuts max_crop_samples
data                       place      batch_seconds
data                       -          global_batch_seconds num_workers prefetch_batches timeout_seconds
data                       -          shar_cache shar_cache_gb
targets                    -          cache
optimizer                  run        lr betas eps weight_decay clip_norm
schedule                   run        warmup decay final
trainer                    run        max_steps accumulate precision compile
trainer                    -          accelerator devices num_nodes strategy log_every dev_every checkpoint_every
trainer                    -          keep_checkpoints max_nonfinite wandb_project
.                          run        seed pruning stages
.                          -          output
"""


def settings_of(section: type[Config], name: str = "") -> Iterator[str]:
    """Dotted names of all settings, those of the teachers without numbers; what may be null is one as a whole."""
    for key, hint in typing.get_type_hints(section).items():
        dotted = f"{name}.{key.rstrip('_')}".lstrip(".")
        part = TeacherConfig if key == "teachers" else hint
        if isinstance(part, type) and issubclass(part, Config):
            yield from settings_of(part, dotted)
        else:
            yield dotted


def test_every_setting_of_a_recipe_is_classified():
    written: dict[str, set[str]] = {}
    for line in DEPENDENT.strip().splitlines():
        section, users, *keys = line.split()
        written |= {f"{section}.{key}".removeprefix(".."): set(users.split(",")) - {"-"} for key in keys}
    config = RunConfig.from_mapping(RECIPE)
    described = {re.sub(r"^teachers\.[ab]\.", "teachers.", name) for name in settings.describe(config)}
    identity = {f"data.{key}" for key in config.data.to_mapping()} - {f"data.{key}" for key in stream.FREE}
    found = {
        name: {
            *({"run"} if name not in FREE_ON_RESUME else ()),
            *({"cache"} if name in described else ()),
            *({"place"} if name in identity else ()),
        }
        for name in settings_of(RunConfig)
    }
    assert found == written
    for name in FREE_ON_RESUME | settings.FREE | {f"data.{key}" for key in stream.FREE}:
        section = name.rpartition(".")[0]  # such as units, which may be null
        assert name in found or section in found, f"{name} is free, but no setting"


def test_every_setting_of_an_evaluation_is_classified():
    compared = {"upstream", "ckpt", "seed", "fine_tune", "remember_features", "device"}
    names = {field.name for field in dataclasses.fields(evaluation.Evaluation)}
    assert names - evaluation.FREE == compared
    assert names >= evaluation.FREE
