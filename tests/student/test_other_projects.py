"""Other projects' files as students and as teachers: the same features as the reference, by every door."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_foreign import (
    LARGE,
    as_fairseq_writes_it,
    masked_hubert,
    of_torchaudio,
    pruned_hubert,
    pruned_wavlm,
    states_of_torchaudio,
)
from helpers_models import ROOT, speech_like
from helpers_teachers import padded_states, s3prl_checkpoint, tiny_model
from torch import Tensor
from transformers import AutoModel

from s3prl_ekd import load_student, s3prl_hub
from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig
from s3prl_ekd.distiller import build_student
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.teachers import load_teacher, load_teachers
from s3prl_ekd.teachers.own_encoder import FastTeacher
from s3prl_ekd.upstream import ekd_student

patches.apply()
WAVE = speech_like(8000)


def torchaudio(kind: str = "hubert", **sizes: Any) -> Callable[[Path], tuple[Path, list[Tensor]]]:
    def make(folder: Path) -> tuple[Path, list[Tensor]]:
        """torchaudio's users normalise waveforms themselves where the model wants it, as its bundles do."""
        model = of_torchaudio(kind, **sizes)
        torch.save(model.state_dict(), folder / "model.pt")
        (folder / "model.json").write_text(json.dumps({"encoder_num_heads": 4, "encoder_max_distance": 40}))
        wave = F.layer_norm(WAVE, WAVE.shape) if sizes else WAVE
        return folder / "model.pt", states_of_torchaudio(model, wave[None])

    return make


def fairseq(*, large: bool = False) -> Callable[[Path], tuple[Path, list[Tensor]]]:
    def make(folder: Path) -> tuple[Path, list[Tensor]]:
        """By s3prl's copy of fairseq's model; Large ones hear normalised waveforms."""
        from s3prl.upstream.hubert.convert import load_converted_model

        path = s3prl_checkpoint(tiny_model("hubert", large=large), "hubert", folder / "converted.pt", large=large)
        model = load_converted_model(str(path))[0].eval()
        wave = F.layer_norm(WAVE, WAVE.shape) if large else WAVE
        projected = model.post_extract_proj(model.layer_norm(model.forward_features(wave[None]).transpose(1, 2)))
        last, layers = model.encoder(projected, padding_mask=None)
        states = [projected, *(layer.transpose(0, 1) for layer, *_ in layers[:-1]), last]
        return as_fairseq_writes_it(path, folder / "fairseq.pt"), states

    return make


def maskhubert(folder: Path) -> tuple[Path, list[Tensor]]:
    model, path = masked_hubert(folder)
    waves = WAVE[None]
    _, projected, _, _, hidden = model(waves, torch.ones_like(waves), get_hidden=True, no_pred=True)
    return path, [projected, *hidden]


def dphubert(**options: Any) -> Callable[[Path], tuple[Path, list[Tensor]]]:
    def make(folder: Path) -> tuple[Path, list[Tensor]]:
        model, states = pruned_hubert(**options)
        torch.save(states, folder / "pruned.pth")
        return folder / "pruned.pth", states_of_torchaudio(model, WAVE[None])

    return make


def dpwavlm(folder: Path) -> tuple[Path, list[Tensor]]:
    """By the dense model in which the heads that are gone have no effect."""
    model, states = pruned_wavlm()
    torch.save(states, folder / "pruned.pth")
    return folder / "pruned.pth", states_of_torchaudio(model, WAVE[None])


def dpwavlm_without_a_block(folder: Path) -> tuple[Path, list[Tensor]]:
    """The file has nothing of a layer's attention, the dense model no effect of it."""
    model, states = pruned_wavlm([[0, 2], [], [1, 2, 3]], drop=True)
    torch.save(states, folder / "pruned.pth")
    return folder / "pruned.pth", states_of_torchaudio(model, WAVE[None])


def diarizen(folder: Path) -> tuple[Path, list[Tensor]]:
    """The same encoder inside a larger model."""
    model, states = pruned_wavlm()
    weights = {f"wavlm_model.{name}": tensor for name, tensor in states["state_dict"].items()}
    torch.save(weights | {"classifier.bias": torch.zeros(2)}, folder / "pytorch_model.bin")
    (folder / "pytorch_model.json").write_text(json.dumps(states["config"]))
    return folder / "pytorch_model.bin", states_of_torchaudio(model, WAVE[None])


def released_wavlm(folder: Path) -> tuple[Path, list[Tensor]]:
    """By transformers' model of the same weights; its hidden state 0 is the input of the first layer."""
    model = tiny_model("wavlm")
    path = s3prl_checkpoint(model, "wavlm", folder / "WavLM.pt")
    features = model.feature_projection(model.feature_extractor(WAVE[None]).transpose(1, 2))[0]
    return path, [features, *model(WAVE[None], output_hidden_states=True).hidden_states[1:]]


FORMATS: dict[str, Callable[[Path], tuple[Path, list[Tensor]]]] = {
    "torchaudio": torchaudio(),
    "torchaudio, large": torchaudio(**LARGE),
    "torchaudio, WavLM": torchaudio("wavlm"),
    "fairseq": fairseq(),
    "fairseq, large": fairseq(large=True),
    "WavLM as released": released_wavlm,
    "MaskHuBERT": maskhubert,
    "DPHuBERT": dphubert(),
    "DPHuBERT, all gates open or closed": dphubert(soft=False),
    "DPHuBERT, blocks dropped": dphubert(remaining=[[0, 1], [], [3]], inner=[0, 32, 5]),
    "DPHuBERT, large": dphubert(**LARGE),  # whose file says that waveforms are not normalised
    "DPWavLM": dpwavlm,
    "DPWavLM, a block dropped": dpwavlm_without_a_block,
    "DiariZen": diarizen,
}


def assert_close(states, expected):
    assert len(states) == len(expected)
    for ours, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_the_same_features_by_every_door(tmp_path, name):
    path, expected = FORMATS[name](tmp_path)
    frames = expected[0].shape[1]
    assert_close(load_student(path)(WAVE[None]).hidden_states, expected)
    assert_close([state[:, :frames] for state in ekd_student(path)([WAVE])["hidden_states"]], expected)
    teacher = load_teacher(TeacherConfig(name="t", student=str(path), layers=(1, 3)), initializes=3)
    assert isinstance(teacher, FastTeacher)
    states, _ = padded_states(teacher, WAVE[None], torch.tensor([len(WAVE)]))
    assert_close(states, [expected[1], expected[3]])


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_saved_as_a_folder(tmp_path, name):
    """Which transformers opens too; it leaves waveforms to be normalised by an extractor of its own."""
    path, expected = FORMATS[name](tmp_path)
    folder = save_student(tmp_path / "student", load_student(path))
    student = load_student(folder)
    assert_close(student(WAVE[None]).hidden_states, expected)
    if not student.config.normalize_waveform:
        model = AutoModel.from_pretrained(folder)
        output = model(WAVE[None], output_hidden_states=True)
        assert_close([*output.hidden_states[1:-1], output.last_hidden_state], expected[1:])


@pytest.mark.parametrize("name", ["torchaudio", "fairseq", "DPHuBERT", "DPWavLM", "MaskHuBERT"])
@torch.no_grad()
def test_a_student_can_be_a_copy_of_it(tmp_path, name):
    path, expected = FORMATS[name](tmp_path)
    recipe = {"student": {"copy": "t"}, "teachers": [{"name": "t", "student": str(path), "layers": [1]}]}
    config = DistillConfig.from_mapping(recipe)
    assert_close(build_student(config, load_teachers(config)).eval()(WAVE[None]).hidden_states, expected)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a weight": (
        lambda states: states["state_dict"].pop("encoder.transformer.layers.1.final_layer_norm.weight"),
        "encoder.layers.1.final_layer_norm.weight is missing",
    ),
    "a number": (
        lambda states: states["state_dict"]["encoder.transformer.layer_norm.weight"].fill_(torch.nan),
        "encoder.layer_norm.weight holds NaN or infinity",
    ),
    "the arguments": (lambda states: states.update(config=None), "a damaged checkpoint"),
    "the heads": (
        lambda states: states["config"].update(encoder_remaining_heads=[[0]]),
        r"encoder_remaining_heads: expected a list for each of 3 layers, found \[\[0\]\]",
    ),
    "the end": (lambda states: None, "incomplete: its end is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_by_whatever_opens_it_as_an_upstream(tmp_path, damage):
    import s3prl.hub
    from s3prl.nn import S3PRLUpstream

    s3prl_hub.register()
    spoil, words = DAMAGE[damage]
    path, _ = dpwavlm(tmp_path)
    states = torch.load(path, weights_only=True)
    spoil(states)
    torch.save(states, path)
    if damage == "the end":
        path.write_bytes(path.read_bytes()[:5000])
    for work in (
        lambda: ekd_student(path),
        lambda: s3prl.hub.ekd_student(ckpt=str(path)),  # as ``-u ekd_student -k FILE``
        lambda: S3PRLUpstream("ekd_student", path_or_url=str(path)),
        lambda: torch.hub.load(str(ROOT), "ekd_student", ckpt=str(path), source="local"),
    ):
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: .*{words}"):
            work()


def test_a_teacher_that_is_no_student(tmp_path):
    with pytest.raises(UserError, match=r"teacher 't': .*no such file or folder"):
        load_teacher(TeacherConfig(name="t", student=str(tmp_path / "absent"), layers=(1,)))


def test_a_student_teaches_as_its_folder_of_transformers_does(tmp_path, tiny_student):
    """Its hidden state 0 is then the input of the first layer, and a student can start from its weights."""
    folder = save_student(tmp_path / "student", tiny_student)
    waves, lengths = torch.stack([speech_like(9000, 1), speech_like(9000, 2)]), torch.tensor([9000, 6000])
    found = []
    for options in (
        {"student": str(folder)},
        {"student": str(folder), "own_forward": True},
        {"transformers": str(folder)},
    ):
        teacher = load_teacher(TeacherConfig(name="t", layers=(0, 1), **options), initializes=2)
        found.append((padded_states(teacher, waves, lengths)[0], teacher.encoder_state()))
    for states, weights in found:
        assert_close(states, found[-1][0])
        for key, tensor in tiny_student.state_dict().items():
            torch.testing.assert_close(weights[key], tensor)
