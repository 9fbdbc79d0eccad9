"""Student folders that transformers has written again or fine-tuned are students still."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from helpers_files import as_pickle, as_pickled_parts, save_again, save_classification, save_ctc, save_in_parts
from helpers_models import ROOT, speech_like
from helpers_teachers import padded_states
from safetensors.torch import load_file

from s3prl_ekd import assets, load_student
from s3prl_ekd.config.recipe import StudentConfig, TeacherConfig
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.teachers import load_teacher
from s3prl_ekd.upstream import ekd_student, ekd_student_mini


@pytest.fixture
def folder(tmp_path, tiny_student):
    return save_student(tmp_path / "student", tiny_student)


CTC = "HubertForCTC; the student is taken out of it, without lm_head"
CLASSIFICATION = (
    "HubertForSequenceClassification; the student is taken out of it, without classifier, layer_weights, projector"
)


@pytest.mark.parametrize(
    ("write", "pickled", "words"),
    [
        (save_again, None, None),
        (save_again, as_pickle, None),
        (save_again, as_pickled_parts, None),
        (save_in_parts, None, None),
        (save_ctc, None, CTC),
        (save_ctc, as_pickled_parts, CTC),
        (save_classification, None, CLASSIFICATION),
        (save_classification, as_pickle, CLASSIFICATION),
    ],
)
def test_it_comes_back_as_the_same_student(folder, tmp_path, tiny_student, caplog, write, pickled, words):
    write(folder, tmp_path / "again")
    if pickled is not None:
        pickled(tmp_path / "again")
    with caplog.at_level(logging.WARNING):
        student = load_student(tmp_path / "again")
    assert student.config == tiny_student.config
    for name, tensor in tiny_student.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("s3prl_ekd")]
    assert said == ([] if words is None else [f"{tmp_path / 'again'}: {words}"])
    wave = speech_like(8000)
    upstream = torch.hub.load(str(ROOT), "ekd_student", ckpt=str(tmp_path / "again"), source="local", verbose=False)
    expected = ekd_student(folder)([wave])["hidden_states"]
    for state, reference in zip(upstream([wave])["hidden_states"], expected, strict=True):
        assert torch.equal(state, reference)


def test_the_normalisation_of_waveforms_survives(tmp_path, tiny_config):
    from transformers import AutoFeatureExtractor, AutoModel

    for wanted in (False, True):
        config = StudentConfig.from_mapping(tiny_config.to_mapping() | {"normalize_waveform": wanted})
        folder = save_student(tmp_path / f"student-{wanted}", Student(config))
        again = tmp_path / f"again-{wanted}"
        AutoModel.from_pretrained(folder).save_pretrained(again)
        assert load_student(again).config.normalize_waveform is wanted  # no preprocessor there
        AutoFeatureExtractor.from_pretrained(folder).save_pretrained(again)
        assert load_student(again).config.normalize_waveform is wanted
        (again / "preprocessor_config.json").unlink()  # newer processors keep it inside another file
        extractor = {"feature_extractor": {"do_normalize": not wanted}}
        (again / "processor_config.json").write_text(json.dumps(extractor))
        assert load_student(again).config.normalize_waveform is not wanted


def test_what_is_stored_in_half_precision_is_computed_in_single():
    folder = assets.folder("student_mini")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    teacher = load_teacher(TeacherConfig(name="t", transformers=str(folder), layers=(0, 2)))
    for module in (load_student(folder), ekd_student(folder), ekd_student_mini(), teacher.module):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    states, _ = padded_states(teacher, speech_like(8000)[None], torch.tensor([8000]))
    with torch.no_grad():
        expected = load_student(folder)(speech_like(8000)[None]).hidden_states[2]
    torch.testing.assert_close(states[1], expected, atol=1e-4, rtol=0)


def test_the_hub_is_asked_for_pickled_weights_only_where_there_are_no_others(folder, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        return folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    load_student("some/student")
    assert "model*.safetensors" in asked[0]
    assert not any("bin" in pattern for pattern in asked[0])
    assert len(asked) == 1
    as_pickle(folder)
    load_student("some/student")
    assert len(asked) == 3
    assert "pytorch_model*.bin" in asked[2]
