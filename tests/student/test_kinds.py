"""A student of another front end by one entry in a table, and heads that predict from other layers than the last."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_models import TINY, FakeTeacher, batch_of, speech_like
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from s3prl_ekd import load_student
from s3prl_ekd.config.recipe import AGGREGATORS, STUDENT_KINDS, DistillConfig, StudentConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import Transformer
from s3prl_ekd.network.frames import Packing, conv_frames
from s3prl_ekd.network.front_end import FrontEnd
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.folder import load_student_and_heads, save_student
from s3prl_ekd.student.heads import PredictionHeads, Tap
from s3prl_ekd.student.kinds import StudentKind
from s3prl_ekd.student.model import Student
from s3prl_ekd.targets import SeparateHeads, Target
from s3prl_ekd.upstream import ekd_student
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY


class Spectrum(FrontEnd):
    """Magnitudes of the Fourier transform of each frame's samples."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.channels, self.min_samples = 201, 400
        self.register_buffer("window", torch.hann_window(400), persistent=False)

    @property
    def like(self) -> Tensor:
        return self.window

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        return conv_frames(lengths, [400], [320])

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Packing]:
        packing = Packing(self.frame_lengths(lengths), waveforms.device)
        spectra = torch.fft.rfft(waveforms.unfold(1, 400, 320) * self.window).abs()  # (B, F, 201)
        return packing.pack(spectra[:, : packing.size]), packing


SPECTRUM = StudentKind(front_end=Spectrum, encoder=Transformer, architecture={"model_type": "spectrum-hubert"})


def test_a_student_of_another_front_end(monkeypatch, tmp_path, utterances):
    monkeypatch.setitem(STUDENT_KINDS, "spectrum", f"{__name__}:SPECTRUM")
    teacher = FakeTeacher()
    config = DistillConfig.from_mapping(
        {
            "student": {**TINY, "kind": "spectrum"},
            "teachers": [{"name": teacher.name, "transformers": "unused", "layers": [1, 2]}],
        }
    )
    distiller = Distiller(config, [teacher])
    distiller(batch_of(*utterances)).loss.backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())

    student = distiller.student.eval()
    loaded = load_student(save_student(tmp_path / "student", student, distiller.heads, config))
    assert loaded.config.kind == "spectrum"
    assert isinstance(loaded.feature_extractor, Spectrum)
    together = loaded(utterances)
    for b, wave in enumerate(utterances):
        for ours, alone in zip(together.hidden_states, student(wave[None]).hidden_states, strict=True):
            torch.testing.assert_close(ours[b, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)


def test_unknown_kinds_are_refused_by_name():
    with pytest.raises(UserError, match=r"student.kind: unknown value 'huber'; did you mean 'hubert'"):
        DistillConfig.from_mapping({"student": {"kind": "huber"}, "teachers": [{"name": "t", "mini": "hubert"}]})


class LayerToLayer(SeparateHeads):
    """The first of each teacher's layers from the student's first, all others from its last."""

    def _plan(self) -> list[Target]:
        targets = super()._plan()
        return [Target(t.name, t.size, t.weight, t.parts, 1 if t.name.endswith("/1") else -1) for t in targets]


def test_a_target_is_predicted_from_the_layer_that_it_names(monkeypatch, tmp_path):
    """In the loss, in a folder, in a checkpoint of run_pretrain, and in the upstream's predictions."""
    monkeypatch.setitem(AGGREGATORS, "layer-to-layer", f"{__name__}:LayerToLayer")
    teacher = FakeTeacher()
    student = {**TINY, "hidden_dropout": 0, "attention_dropout": 0, "activation_dropout": 0}
    config = DistillConfig.from_mapping(
        {
            "student": student,
            "teachers": [{"name": "fake", "transformers": "unused", "layers": [1, 2]}],
            "objective": {"aggregation": "layer-to-layer", "cosine_weight": 0},
        }
    )
    distiller = Distiller(config, [teacher])
    assert distiller.heads.taps == (Tap(1, "fake/1"), Tap(-1, "fake/2"))
    batch = batch_of(speech_like(8000))
    _, first, last = distiller.student(batch.clean).rows
    wanted = teacher.hidden_states(batch.clean, batch.lengths).rows
    head = distiller.heads
    expected = ((head[0](first) - wanted[0]).abs().mean() + (head[1](last) - wanted[1]).abs().mean()) / 2
    torch.testing.assert_close(distiller(batch).loss, expected)

    distiller.eval()
    folder = save_student(tmp_path / "student", distiller.student, distiller.heads, config)
    checkpoint = tmp_path / "states-1.ckpt"
    torch.save({RECIPE_KEY: config.to_mapping(), CHECKPOINT_KEY: distiller.state_dict()}, checkpoint)
    for where in (folder, checkpoint):
        assert load_student_and_heads(where)[1].taps == distiller.heads.taps
        with torch.no_grad():
            *states, from_first, from_last = ekd_student(where, all_hidden_states=True)([batch.clean[0]])[
                "all_hidden_states"
            ]
            torch.testing.assert_close(from_first, head[0](states[1]))
            torch.testing.assert_close(from_last, head[1](states[2]))


def test_taps_of_older_and_of_damaged_folders(tmp_path, tiny_student):
    """Version 0.1.0 wrote names at most: all heads predict from the last layer."""
    folder = save_student(tmp_path / "student", tiny_student, PredictionHeads(24, [24, 24]))
    weights = load_file(folder / "heads.safetensors")
    for metadata, taps in (
        ({}, (Tap(), Tap())),
        ({"targets": "[]"}, (Tap(), Tap())),
        ({"targets": '["a/1", "b/2"]'}, (Tap(-1, "a/1"), Tap(-1, "b/2"))),
    ):
        save_file(weights, folder / "heads.safetensors", {"format": "pt", **metadata})
        assert load_student_and_heads(folder)[1].taps == taps
    for layers in ("[1]", "[1, 3]", '[1, "2"]', "7", "[1,"):
        save_file(weights, folder / "heads.safetensors", {"student_layers": layers})
        with pytest.raises(UserError, match=r"heads\.safetensors: .*download or copy it again"):
            load_student_and_heads(folder)


def test_a_folder_says_what_its_heads_predict(tmp_path):
    student = Student(StudentConfig.from_mapping(TINY))
    heads = PredictionHeads(24, [8], taps=[Tap(1, "hubert/4")])
    folder = save_student(tmp_path / "student", student, heads)
    with safe_open(folder / "heads.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["student_layers"]) == [1]
    assert json.loads(metadata["targets"]) == ["hubert/4"]
