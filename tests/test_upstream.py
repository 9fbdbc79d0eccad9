"""The upstream's contract, without s3prl: frames, batch mates, gradients, hub entries."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers_models import ROOT, speech_like

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import write_yaml
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.upstream import EkdUpstream, ekd_student, ekd_student_mini


@pytest.fixture
def folder(tmp_path, tiny_student):
    return save_student(tmp_path / "student", tiny_student, PredictionHeads(24, [24, 24]))


@pytest.mark.parametrize("samples", [100, 399, 400, 800, 16000, 16001, 16080, 16160, 16161, 48123])
def test_frames_as_many_as_the_featurizers_want(tiny_student, samples):
    upstream = EkdUpstream(tiny_student)
    with torch.no_grad():
        states = upstream([speech_like(samples)])["hidden_states"]
    assert len(states) == 3
    assert {state.shape[1] for state in states} == {-(-samples // 320)}
    assert states[0].shape[1] >= round(samples / 320)


def test_batch_mates_change_nothing_in_what_the_featurizers_read(tiny_student, utterances):
    upstream = EkdUpstream(tiny_student)
    wavs = [*utterances, speech_like(800, 9)]
    with torch.no_grad():
        together = upstream(wavs)["hidden_states"]
        for i, wav in enumerate(wavs):
            for ours, alone in zip(together, upstream([wav])["hidden_states"], strict=True):
                torch.testing.assert_close(ours[i, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)


def test_the_extra_frame_repeats_the_last_one(tiny_student):
    with torch.no_grad():
        state = EkdUpstream(tiny_student)([speech_like(16001)])["hidden_states"][-1]
        inner = tiny_student(speech_like(16001)[None]).hidden_states[-1]
    assert (state.shape[1], inner.shape[1]) == (51, 49)
    assert torch.equal(state[0, :49], inner[0])
    assert torch.equal(state[0, 49], inner[0, 48])
    assert torch.equal(state[0, 50], inner[0, 48])


def test_predictions_only_on_request(folder, tmp_path):
    wavs = [speech_like(4000)]
    assert set(ekd_student(folder)(wavs)) == {"hidden_states", "last_hidden_state"}
    assert len(ekd_student(folder, all_hidden_states=True)(wavs)["all_hidden_states"]) == 5
    write_yaml(tmp_path / "options.yaml", {"all_hidden_states": True})
    upstream = ekd_student(folder, model_config=tmp_path / "options.yaml", refresh=False, feature_selection="x")
    assert len(upstream(wavs)["all_hidden_states"]) == 5
    (folder / "heads.safetensors").unlink()
    with pytest.raises(UserError, match="no prediction heads"):
        ekd_student(folder, all_hidden_states=True)


def test_fine_tuning_reaches_every_weight(folder):
    upstream = ekd_student(folder).train()
    upstream([speech_like(8000), speech_like(5000)])["hidden_states"][-1].sin().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in upstream.parameters())


def test_bad_input(tiny_student):
    with pytest.raises(UserError, match="needs a student"):
        ekd_student()
    for wav in (torch.zeros(0), torch.zeros(2, 16000)):
        with pytest.raises(UserError, match=r"waveform 1 .* must be mono"):
            EkdUpstream(tiny_student)([torch.zeros(400), wav])
    with pytest.raises(UserError, match="NaN"):
        EkdUpstream(tiny_student)([torch.tensor([0.0, float("nan")]).repeat(400)])
    with pytest.raises(UserError, match="use -u ekd_student"):
        ekd_student_mini(ckpt="somebodys/student")


def test_torch_hub_and_plain_loading_need_no_s3prl(folder):
    """torch.hub.load from this repository, and load_student, with s3prl made impossible to import."""
    code = f"""
import sys
sys.modules["s3prl"] = None
import torch
from s3prl_ekd import load_student
upstream = torch.hub.load({str(ROOT)!r}, "ekd_student", ckpt={str(folder)!r}, source="local")
wav = torch.randn(16000)
a = upstream([wav])["hidden_states"][-1][0, :49]
b = load_student({str(folder)!r})(wav[None]).hidden_states[-1][0]
assert torch.equal(a, b) and a.shape == (49, 24)
mini = torch.hub.load({str(ROOT)!r}, "ekd_student_mini", source="local")
assert {{p.dtype for p in mini.parameters()}} == {{torch.float32}}
assert mini([wav.numpy()])["hidden_states"][-1].shape == (1, 50, 192)
print("same")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr
