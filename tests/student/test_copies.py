"""Students that are copies of a teacher: the same hidden states, whatever the teacher is and wherever it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers_models import TINY, speech_like
from helpers_pruned import KINDS as PRUNED
from helpers_pruned import pruned_student
from helpers_teachers import SIZES, s3prl_checkpoint, tiny_model

from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.distiller import build_student
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.config import Architecture
from s3prl_ekd.student.copies import copy_of
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.kinds import encoder_config
from s3prl_ekd.student.model import Student
from s3prl_ekd.teachers import load_teachers

KINDS = [("hubert", False), ("hubert", True), ("wavlm", False), ("wavlm", True), ("wav2vec2", True)]
WAVES = [speech_like(9000), 0.01 * speech_like(5000, 1)]  # a quiet one shows what is added to its variance


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of transformers and files of s3prl, such as ``hubert-True`` and ``hubert-True.pt``."""
    root = tmp_path_factory.mktemp("models")
    for kind, large in KINDS:
        model = tiny_model(kind, large=large)
        model.save_pretrained(root / f"{kind}-{large}")
        s3prl_checkpoint(model, kind, root / f"{kind}-{large}.pt", large=large)
    return root


def copied(teacher: dict, **student) -> Student:
    config = DistillConfig.from_mapping(
        {"student": {"copy": "origin", **student}, "teachers": [{"name": "origin", "layers": [1], **teacher}]}
    )
    return build_student(config, load_teachers(config)).eval()


@torch.no_grad()
def compare(student: Student, model, layers=(0, 1, 2), normalize=False) -> None:
    """With transformers' model without the layers that are not named."""
    model.encoder.layers = model.encoder.layers[: max(layers) + 1]
    if layers != tuple(range(len(layers))):
        model.encoder.layers = torch.nn.ModuleList(model.encoder.layers[layer] for layer in layers)
    for wave in WAVES:
        heard = (F.layer_norm(wave, wave.shape, eps=1e-5) if normalize else wave)[None]
        wanted = model(heard, output_hidden_states=True)
        ours = student(wave[None]).hidden_states
        theirs = [*wanted.hidden_states[1:-1], wanted.last_hidden_state]
        for mine, expected in zip(ours[1:], theirs, strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", ["transformers", "s3prl", "own forward"])
@pytest.mark.parametrize(("kind", "large"), KINDS, ids=[f"{kind}{'-large' * large}" for kind, large in KINDS])
def test_a_copy_has_its_teachers_hidden_states(models, source, kind, large):
    """All layers, also those that the teacher itself does not compute."""
    upstream = {"hubert": "hubert_local", "wavlm": "wavlm_local", "wav2vec2": "wav2vec2_custom"}[kind]
    where = {"transformers": str(models / f"{kind}-{large}")}
    if source == "s3prl":
        where = {"s3prl": upstream, "ckpt": str(models / f"{kind}-{large}.pt")}
    student = copied(where | {"own_forward": source == "own forward"}, hidden_dropout=0.05, feature_grad_scale=1.0)
    compare(student, tiny_model(kind, large=large), normalize=large)
    config = student.config
    assert (config.kind, config.num_hidden_layers) == ("wavlm" if kind == "wavlm" else "hubert", 3)
    assert (config.normalize_waveform, config.normalization_eps) == ((True, 1e-5) if large else (False, 1e-7))
    assert (config.hidden_dropout, config.attention_dropout, config.feature_grad_scale) == (0.05, 0.1, 1.0)
    assert config.copy is None
    assert config.parameters == sum(parameter.numel() for parameter in student.parameters())


@pytest.mark.parametrize("own_forward", [False, True])
@pytest.mark.parametrize(("normalize_waveform", "normalization_eps"), [(False, 1e-7), (True, 1e-7), (True, 3e-6)])
def test_a_copy_hears_what_a_student_that_teaches_hears(tmp_path, normalize_waveform, normalization_eps, own_forward):
    wanted = {"normalize_waveform": normalize_waveform, "normalization_eps": normalization_eps}
    origin = Student(StudentConfig.from_mapping({**TINY, **wanted})).eval()
    save_student(tmp_path / "origin", origin)
    student = copied({"student": str(tmp_path / "origin"), "own_forward": own_forward})
    assert {key: getattr(student.config, key) for key in wanted} == wanted
    assert torch.equal(student(WAVES).rows[-1], origin(WAVES).rows[-1])


@pytest.mark.parametrize("source", ["transformers", "student"])
@pytest.mark.parametrize(("kind", "large"), PRUNED)
def test_a_copy_of_a_pruned_folder(tmp_path, source, kind, large):
    """Its layers differ in size: ``ekd_hubert`` and ``ekd_wavlm``."""
    origin = pruned_student(kind, large=large)
    save_student(tmp_path / "origin", origin)
    student = copied({source: str(tmp_path / "origin")}, copy_layers=[0, 1, 2])
    assert student.config.num_attention_heads == origin.config.num_attention_heads == (2, 0, 1)
    torch.testing.assert_close(student(WAVES).rows, origin(WAVES).rows, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "large"), [("hubert", True), ("wavlm", False)])
@pytest.mark.parametrize("layers", [(0, 2), (1,), (0, 1)])
def test_some_layers_only(models, kind, large, layers):
    """A pre-norm model's final LayerNorm comes along, and WavLM's position bias, which is in its first layer."""
    student = copied({"transformers": str(models / f"{kind}-{large}")}, copy_layers=layers)
    model = tiny_model(kind, large=large)
    if kind == "wavlm":
        first = model.encoder.layers[layers[0]].attention
        first.rel_attn_embed = model.encoder.layers[0].attention.rel_attn_embed
    compare(student, model, layers, normalize=large)
    assert student.config.num_hidden_layers == len(layers)


def test_a_copy_of_a_packaged_teacher():
    student = copied({"mini": "wavlm"})
    assert (student.config.kind, student.config.num_buckets) == ("wavlm", 320)
    assert student(WAVES).hidden_states[-1].isfinite().all()


def test_what_cannot_be_copied(models, tmp_path):
    with pytest.raises(UserError, match=r"student.copy_layers: teacher 'origin' has the layers 0 to 2, and no layer 3"):
        copied({"transformers": str(models / "hubert-False")}, copy_layers=[0, 3])
    from transformers import Data2VecAudioConfig, Data2VecAudioModel

    sizes = {key: value for key, value in SIZES.items() if key != "num_conv_pos_embeddings"}
    Data2VecAudioModel(Data2VecAudioConfig(**sizes)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"'origin': .*other is no HuBERT, WavLM or wav2vec 2.0, and no student can be"):
        copied({"transformers": str(tmp_path / "other")})


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"copy": "origi"}, "student.copy: no teacher is named 'origi'; did you mean 'origin'"),
        (
            {"copy": "origin", "hidden_size": 512},
            "student.hidden_size: a copy has what its teacher has; leave this out",
        ),
        ({"copy": "origin", "num_hidden_layers": 3}, "student.num_hidden_layers: a copy has what its teacher has"),
        ({"copy": "origin", "initialize_from": "origin"}, "student.initialize_from: a copy has what its teacher has"),
        ({"copy_layers": [0]}, "student.copy_layers: says which layers of student.copy"),
        ({"copy": "origin", "copy_layers": [2, 0]}, r"copy_layers: expected numbers .* rising order, found \[2, 0\]"),
        ({"copy": "origin", "copy_layers": []}, r"copy_layers: expected numbers of layers in rising order, found \[\]"),
    ],
)
def test_settings_beside_copy(student, words):
    with pytest.raises(UserError, match=words):
        DistillConfig.from_mapping({"student": student, "teachers": [{"name": "origin", "mini": "hubert"}]})


def test_a_copy_of_a_teacher_whose_layers_differ_in_size():
    """As a pruned student is, once it teaches: sizes go with the layers that are copied."""
    sizes = {"num_hidden_layers": 3, "num_attention_heads": [1, 0, 2], "intermediate_size": [0, 5, 7], "head_dim": 6}
    wavlm = {"kind": "wavlm", "num_buckets": 32, "feat_proj_layer_norm": True, "remaining_heads": [[3], [], [0, 2]]}
    origin = Student(StudentConfig.from_mapping({**TINY, **sizes, **wavlm})).eval()
    architecture = Architecture(encoder=encoder_config(origin.config))
    whole = copy_of(StudentConfig(copy="origin"), architecture, origin.state_dict()).eval()
    assert torch.equal(whole(WAVES).rows[-1], origin(WAVES).rows[-1])
    part = copy_of(StudentConfig(copy="origin", copy_layers=(0, 2)), architecture, origin.state_dict())
    assert part.config.num_attention_heads == (1, 2)
    assert part.config.intermediate_size == (0, 7)
    assert part.config.remaining_heads == ((3,), (0, 2))
