"""Folders of students of every kind: read back, opened by transformers, in a checkpoint, as upstream and as teacher."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from helpers_models import ROOT, TINY, FakeTeacher, batch_of, speech_like
from helpers_teachers import padded_states, tiny_model
from safetensors.torch import load_file
from transformers import AutoModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from s3prl_ekd import cost, load_student
from s3prl_ekd.commands import export_checkpoint, init_student
from s3prl_ekd.config.recipe import DistillConfig, StudentConfig, TeacherConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.checkpoint import ARCHITECTURE_KEY, RECIPE_KEY
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.teachers import load_teacher
from s3prl_ekd.transformers_model import modeling_ekd
from s3prl_ekd.upstream import ekd_student
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

LARGE = {"conv_bias": True, "conv_layer_norm": True, "do_stable_layer_norm": True, "normalize_waveform": True}
NORM = {"feat_proj_layer_norm": True}
WAVLM = NORM | {"kind": "wavlm", "num_buckets": 32, "max_bucket_distance": 40}
DIFFER = {"num_attention_heads": [2, 0], "intermediate_size": [0, 9], "head_dim": 6}
KEPT = {"remaining_heads": [[1, 3], []]}
UNIFORM = {
    "distilhubert": {},
    "hubert": NORM,
    "hubert-large": NORM | LARGE,
    "wavlm": WAVLM,
    "wavlm-large": WAVLM | LARGE,
}
OF_LAYERS = {
    "hubert": NORM | DIFFER,
    "hubert-large": LARGE | DIFFER,
    "narrow heads": {"num_attention_heads": [3, 3], "intermediate_size": [48, 48], "head_dim": 5},
    "wavlm": WAVLM | DIFFER | KEPT,
    "wavlm-large": WAVLM | LARGE | DIFFER | KEPT,
}
EVERY = [*UNIFORM.values(), *OF_LAYERS.values()]
IDS = [*UNIFORM, *(f"{name}, of layers" for name in OF_LAYERS)]
WAVE = speech_like(8000)


def student_of(changes) -> Student:
    torch.manual_seed(0)
    student = Student(StudentConfig.from_mapping({**TINY, **changes, "layer_norm_eps": 1e-4})).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student


@pytest.mark.parametrize("changes", EVERY, ids=IDS)
def test_it_comes_back(tmp_path, changes):
    student = student_of(changes)
    loaded = load_student(save_student(tmp_path / "student", student))
    assert loaded.config == student.config
    for ours, wanted in zip(loaded([WAVE]).rows, student([WAVE]).rows, strict=True):
        assert torch.equal(ours, wanted)
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"knowledge-distillation, {student.config.kind}]" in card
    assert cost.in_words(cost.FixedSizes.of(student.config), cost.UnitCounts.of(student.config)) in card
    assert ("trust_remote_code" in card) == (changes in OF_LAYERS.values())


@torch.no_grad()
@pytest.mark.parametrize("changes", EVERY, ids=IDS)
def test_transformers_opens_it(tmp_path, changes):
    """Those of equal layers by its own classes, which a folder without auto_map asks for."""
    student = student_of(changes)
    folder = save_student(tmp_path / "student", student)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    own = not type(model).__name__.startswith("Ekd")
    assert own == (changes in UNIFORM.values())
    assert (folder / "modeling_ekd.py").exists() != own
    settings = json.loads((folder / "config.json").read_text())
    assert ("auto_map" in settings) != own
    if not own:
        assert settings["auto_map"] == type(model.config)().auto_map
        assert settings["architectures"] == [type(model).__name__]
        assert (folder / "modeling_ekd.py").read_text() == Path(modeling_ekd.__file__).read_text()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    heard = extractor(WAVE.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    output = model(heard, output_hidden_states=True)
    theirs = [*output.hidden_states[1:-1], output.last_hidden_state]
    for ours, wanted in zip(student([WAVE]).hidden_states[1:], theirs, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert torch.equal(load_student(again)([WAVE]).rows[-1], student([WAVE]).rows[-1])


@torch.no_grad()
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_model_of_transformers_is_a_student(tmp_path, kind, large, caplog):
    """Normalising waveforms where such models want it, whatever a preprocessor says."""
    model = tiny_model(kind, large=large)
    model.save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "model")
    student = load_student(tmp_path / "model")
    assert (student.config.kind, student.config.normalize_waveform) == (kind, large)
    assert ("such models (GroupNorm in the conv stack) are trained without" in caplog.text) != large
    heard = torch.nn.functional.layer_norm(WAVE, WAVE.shape, eps=1e-7) if large else WAVE
    torch.testing.assert_close(
        student([WAVE]).hidden_states[-1], model(heard[None]).last_hidden_state, atol=1e-5, rtol=0
    )
    if large:
        (tmp_path / "model" / "preprocessor_config.json").unlink()
        assert load_student(tmp_path / "model").config.normalize_waveform


def test_a_wav2vec2_is_a_teacher_only(tmp_path):
    Wav2Vec2Model(tiny_model("wav2vec2").config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"model_type: 'wav2vec2' .* can be a teacher \(transformers: .*model\)"):
        load_student(tmp_path / "model")


@pytest.mark.parametrize("changes", EVERY, ids=IDS)
def test_checkpoints_have_the_students_sizes(tmp_path, changes, capsys):
    """Read, exported and used as upstream, though the recipe says another student."""
    recipe = DistillConfig.from_mapping(
        {"student": TINY, "teachers": [{"name": "fake", "transformers": "unused", "layers": [1, 2]}]}
    )
    distiller = Distiller(recipe, [FakeTeacher()])
    distiller.student = student = student_of(changes)
    states = {RECIPE_KEY: recipe.to_mapping(), CHECKPOINT_KEY: distiller.state_dict()}
    torch.save(states | {ARCHITECTURE_KEY: student.config.to_mapping()}, tmp_path / "states-1.ckpt")
    parser = argparse.ArgumentParser()
    export_checkpoint.add_arguments(parser)
    export_checkpoint.run(parser.parse_args([str(tmp_path / "states-1.ckpt"), str(tmp_path / "student")]))
    upstream = torch.hub.load(str(ROOT), "ekd_student", str(tmp_path / "student"), source="local", verbose=False)
    with torch.no_grad():
        wanted = student([WAVE]).hidden_states[-1]
        for one in (ekd_student(tmp_path / "states-1.ckpt", all_hidden_states=True), upstream):
            assert torch.equal(one([WAVE])["last_hidden_state"][:, : wanted.shape[1]], wanted)
    distiller(batch_of(WAVE)).loss.backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in student.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "source"),
    [*((changes, "transformers") for changes in UNIFORM.values()), *((c, "student") for c in OF_LAYERS.values())],
    ids=IDS,
)
def test_a_folder_as_a_teacher(tmp_path, changes, source):
    """By transformers where its own classes open it, by ``student:`` whatever the sizes."""
    student = student_of(changes)
    folder = save_student(tmp_path / "student", student)
    teacher = load_teacher(TeacherConfig(name="t", layers=(1, 2), **{source: str(folder)}))
    loud = WAVE * 10  # teachers add 1e-5 to the variance when they normalise, students 1e-7
    states, _ = padded_states(teacher, loud[None], torch.tensor([8000]))
    for ours, wanted in zip(states, student([loud]).hidden_states[1:], strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-3 if student.config.normalize_waveform else 1e-5, rtol=0)


def test_init_student_makes_the_folder_of_a_copy(tmp_path):
    model = tiny_model("wavlm")
    model.save_pretrained(tmp_path / "wavlm")
    recipe = tmp_path / "config_model.yaml"
    teacher = {"name": "wavlm", "transformers": str(tmp_path / "wavlm"), "layers": [1]}
    recipe.write_text(json.dumps({"student": {"copy": "wavlm"}, "teachers": [teacher]}))
    parser = argparse.ArgumentParser()
    init_student.add_arguments(parser)
    init_student.run(parser.parse_args([str(recipe), str(tmp_path / "student")]))
    weights = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())
    assert load_student(tmp_path / "student").config.num_hidden_layers == 3
