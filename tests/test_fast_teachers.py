"""HuBERT and WavLM teachers by our encoder give what their own code gives, utterance by utterance."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import speech_like
from helpers_teachers import s3prl_checkpoint, tiny_model
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.config import TeacherConfig
from s3prl_ekd.teachers import load_teacher
from s3prl_ekd.teachers.fast import FastTeacher

KINDS = [(kind, large) for kind in ("hubert", "wav2vec2", "wavlm") for large in (False, True)]
UPSTREAMS = {"hubert": "hubert_local", "wav2vec2": "wav2vec2_local", "wavlm": "wavlm_local"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    for kind, large in KINDS:
        model = tiny_model(kind, large=large)
        model.save_pretrained(folder / f"{kind}-{large}")
        s3prl_checkpoint(model, kind, folder / f"{kind}-{large}.pt", large=large)
    return folder


def entry(shelf, source, kind, large, **changes):
    name = f"{kind}-{large}"
    where = {
        "transformers": {"transformers": str(shelf / name)},
        "s3prl": {"s3prl": UPSTREAMS[kind], "ckpt": str(shelf / f"{name}.pt")},
    }[source]
    return TeacherConfig(name=name, layers=(0, 1, 3), **where, **changes)


@pytest.mark.parametrize("source", ["transformers", "s3prl"])
@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_same_numbers_by_either_forward(shelf, source, kind, large, utterances):
    config = entry(shelf, source, kind, large)
    fast, own = load_teacher(config), load_teacher(dataclasses.replace(config, own_forward=True))
    assert isinstance(fast, FastTeacher)
    assert not isinstance(own, FastTeacher)
    batch = pad_sequence(utterances, batch_first=True), torch.tensor([len(u) for u in utterances])
    (ours, frames), (theirs, expected_frames) = fast.hidden_states(*batch), own.hidden_states(*batch)
    assert frames.tolist() == expected_frames.tolist()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    assert fast.encoder_state().keys() == own.encoder_state().keys()
    for name, tensor in own.encoder_state().items():
        torch.testing.assert_close(fast.encoder_state()[name], tensor, atol=1e-6, rtol=0)
    assert fast.describe().removesuffix(", input normalised") == own.describe().removesuffix(", input normalised")


@pytest.mark.parametrize("source", ["transformers", "s3prl"])
@pytest.mark.parametrize("large", [False, True])
def test_only_what_is_needed_is_kept(shelf, source, large):
    teacher = load_teacher(dataclasses.replace(entry(shelf, source, "hubert", large), layers=(1,)))
    assert isinstance(teacher, FastTeacher)
    assert len(teacher.module.encoder.layers) == 1
    assert "encoder.layers.2.attention.k_proj.weight" in teacher.encoder_state()


def test_a_model_that_only_looks_alike_keeps_its_own_forward(shelf, tmp_path, caplog):
    model = tiny_model("hubert", hidden_act="relu")
    model.save_pretrained(tmp_path / "relu")
    config = TeacherConfig(name="relu", transformers=str(tmp_path / "relu"), layers=(1,))
    assert not isinstance(load_teacher(config), FastTeacher)

    from s3prl_ekd.teachers.fast import accelerate

    own = load_teacher(dataclasses.replace(entry(shelf, "transformers", "hubert", False), own_forward=True))
    own.module.feature_projection.register_forward_hook(lambda module, inputs, output: output + 1)
    assert accelerate(own) is own
    assert "keeps its own forward" in caplog.text


def test_padded_pass_is_transformers_padded_pass(shelf):
    config = entry(shelf, "transformers", "hubert", False)
    fast, own = load_teacher(config), load_teacher(dataclasses.replace(config, own_forward=True))
    batch = pad_sequence([speech_like(16000), speech_like(9000, 1)], batch_first=True), torch.tensor([16000, 9000])
    for a, b in zip(fast.hidden_states(*batch, padded=True)[0], own.hidden_states(*batch, padded=True)[0], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
