"""Recipes: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import pytest

from s3prl_ekd.config import Aggregation, DistillConfig, StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import write_yaml

TEACHER = {"name": "hubert", "mini": "hubert", "layers": [1, 2]}


def recipe(**changes):
    return {"teachers": [TEACHER], **changes}


def test_defaults_are_distilhubert():
    config = DistillConfig.from_mapping(recipe())
    assert config.student.hidden_size == 768
    assert config.student.num_hidden_layers == 2
    assert config.student.feature_grad_scale == 0.1
    assert config.objective.cosine_weight == 1.0
    assert not config.objective.loss_on_padding
    assert not config.distortion.enabled


def test_round_trip_through_plain_values():
    config = DistillConfig.from_mapping(
        recipe(
            objective={"aggregation": "layerwise-average", "cosine_weight": "1e-1"},
            distortion={"noise": {"folder": "noise", "probability": 0.5, "snr_db": [0, 20]}},
        )
    )
    assert config.objective.aggregation is Aggregation.LAYERWISE_AVERAGE
    assert config.objective.cosine_weight == 0.1
    assert DistillConfig.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"teacher": []}, ["'teacher'", "'teachers'"]),
        (recipe(teachers=[{**TEACHER, "layer": 3}]), ["teachers[0].layer", "'layers'"]),
        (recipe(objective={"aggregation": "layerwise-avg"}), ["layerwise-avg", "'layerwise-average'"]),
        (recipe(objective={"aggregation": 3}), ["objective.aggregation", "3"]),
        (recipe(teachers=[{"name": "a"}]), ["'a'", "exactly one source", "s3prl, transformers, mini"]),
        (recipe(teachers=[{"mini": "hubert"}]), ["missing key 'teachers[0].name'"]),
        (recipe(teachers=[TEACHER, TEACHER]), ["unique"]),
        (recipe(teachers=[]), ["at least one teacher"]),
        (recipe(teachers=[{**TEACHER, "layers": []}]), ["layers is empty"]),
        (recipe(teachers=[{**TEACHER, "layers": [1, 1]}]), ["twice"]),
        (recipe(teachers=[{**TEACHER, "weight": "heavy"}]), ["teachers[0].weight", "float", "heavy"]),
        (recipe(teachers=[{**TEACHER, "weight": True}]), ["teachers[0].weight", "bool"]),
        (recipe(teachers=[{**TEACHER, "ckpt": "x"}]), ["ckpt", "s3prl"]),
        (recipe(student={"hidden_size": 100}), ["hidden_size 100", "num_attention_heads 12"]),
        (recipe(student={"conv_stride": [5, 2, 2, 2, 2, 2, 1]}), ["160", "320"]),
        (recipe(student={"hidden_size": None}), ["student.hidden_size", "nothing"]),
        (recipe(student={"initialize_from": "wavlm"}), ["'wavlm'", "hubert"]),
        (recipe(distortion={"noise": {"probability": 1}}), ["distortion.noise", "folder"]),
        (recipe(distortion={"gaussian_noise": {"probability": 1.5}}), ["gaussian_noise.probability", "1.5"]),
        (recipe(distortion={"gaussian_noise": {"snr_db": [20, 0]}}), ["snr_db", "[low, high]"]),
        (recipe(distortion={"gaussian_noise": {"snr_db": [20]}}), ["snr_db", "2 values"]),
        (
            recipe(
                teachers=[TEACHER, {**TEACHER, "name": "b", "layers": [1]}],
                objective={"aggregation": "layerwise-average"},
            ),
            ["pairs layers by position", "separate-heads"],
        ),
        (
            recipe(
                teachers=[TEACHER, {**TEACHER, "name": "b", "weight": 2.0}],
                objective={"aggregation": "layerwise-concatenation"},
            ),
            ["layerwise-concatenation has no weights"],
        ),
    ],
)
def test_bad_recipes_are_refused_in_one_line(mapping, words):
    with pytest.raises(UserError) as caught:
        DistillConfig.from_mapping(mapping)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_yaml_messages_name_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    write_yaml(path, {"hiden_size": 4})
    with pytest.raises(UserError, match=r"recipe\.yaml: unknown key 'hiden_size'; did you mean 'hidden_size'"):
        StudentConfig.from_yaml(path)
    path.write_text("a: [1, 2")
    with pytest.raises(UserError, match=r"recipe\.yaml: not valid YAML"):
        StudentConfig.from_yaml(path)
    path.write_text("student: {}\nstudent: {}\n")
    with pytest.raises(UserError, match="'student' is there twice"):
        StudentConfig.from_yaml(path)
    path.write_text("- 1")
    with pytest.raises(UserError, match="expected 'key: value' lines"):
        StudentConfig.from_yaml(path)
    with pytest.raises(UserError, match="No such file"):
        StudentConfig.from_yaml(tmp_path / "absent.yaml")
