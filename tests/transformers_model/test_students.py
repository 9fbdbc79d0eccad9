"""Students' folders in transformers: the same outputs in batches of mixed lengths, with a head on top, and flat."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_models import speech_like
from helpers_pruned import KINDS, pruned_student
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCTC

from s3prl_ekd import cli, load_student
from s3prl_ekd.student.folder import save_student

WAVES = [speech_like(9000), speech_like(5000, 1), speech_like(2400, 2)]


def outputs(model, waveforms, mask=None):
    """Each layer's output; the last one's after the final LayerNorm, as the student has it."""
    with torch.no_grad():
        output = model(waveforms, attention_mask=mask, output_hidden_states=True)
    return [*output.hidden_states[1:-1], output.last_hidden_state]


def assert_same(model, student, waves):
    """Alone, and in a padded batch where padding has no part in statistics."""
    batches = [[wave] for wave in waves]
    if student.config.conv_layer_norm:
        batches.append(waves)
    for batch in batches:
        mask = pad_sequence([torch.ones(len(wave), dtype=torch.long) for wave in batch], batch_first=True)
        theirs = outputs(model, pad_sequence(batch, batch_first=True), mask)
        with torch.no_grad():
            ours = student(batch)
        for state, reference in zip(theirs, ours.hidden_states[1:], strict=True):
            for row, wanted, frames in zip(state, reference, ours.frame_lengths, strict=True):
                torch.testing.assert_close(row[:frames], wanted[:frames], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_mixed_lengths(kind, large, tmp_path):
    student = pruned_student(kind, large=large)
    model = AutoModel.from_pretrained(save_student(tmp_path / "student", student)).eval()
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert_same(model, student, WAVES)


@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_flat_folders_are_stock(kind, large, tmp_path):
    student = pruned_student(kind, large=large)
    folder = save_student(tmp_path / "student", student)
    assert cli.main(["export", "--flat", str(folder), str(tmp_path / "flat")]) == 0
    assert not (tmp_path / "flat/modeling_ekd.py").exists()
    settings = json.loads((tmp_path / "flat/config.json").read_text())
    assert settings["model_type"] == kind
    assert "auto_map" not in settings
    model = AutoModel.from_pretrained(tmp_path / "flat").eval()
    assert type(model).__module__.startswith("transformers.models.")
    assert list(model.config.conv_dim) == list(student.config.conv_dim)
    assert_same(model, student, WAVES)


@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_the_native_form_is_copied_with_its_code(kind, large, tmp_path):
    folder = save_student(tmp_path / "student", pruned_student(kind, large=large))
    assert cli.main(["export", str(folder), str(tmp_path / "copy")]) == 0
    for path in folder.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_fine_tuned_it_is_a_student_still(kind, tmp_path):
    student = pruned_student(kind)
    tuned = AutoModelForCTC.from_pretrained(save_student(tmp_path / "student", student), vocab_size=7)
    tuned.save_pretrained(tmp_path / "tuned")
    again = load_student(tmp_path / "tuned")
    assert again.config == student.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("sizes", ["different", "equal"])
def test_factors_of_channels(sizes, tmp_path, capsys):
    """What DPHuBERT's files have before a LayerNorm, which no stock model has: transformers takes our classes."""
    equal = {"num_attention_heads": 4, "intermediate_size": 8, "head_dim": None}
    student = pruned_student(
        "hubert", feature_scale=True, feat_proj_layer_norm=True, **(equal if sizes == "equal" else {})
    )
    student.feature_projection.scale.copy_(torch.linspace(0.1, 2, student.config.conv_dim[-1]))
    folder = save_student(tmp_path / "student", student)
    model = AutoModel.from_pretrained(folder).eval()
    assert_same(model, student, WAVES[:1])
    assert_same(model, load_student(folder), WAVES[:1])
    assert cli.main(["export", "--flat", str(folder), str(tmp_path / "flat")]) == 2
    assert "no factors of channels" in capsys.readouterr().err
