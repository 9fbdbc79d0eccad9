"""HuBERT and WavLM teachers by our encoder give what their own code gives, utterance by utterance."""

from __future__ import annotations

import dataclasses
import gc
import types
from collections.abc import Iterator

import pytest
import torch
from helpers_models import speech_like
from helpers_pruned import KINDS as PRUNED
from helpers_pruned import pruned_student
from helpers_teachers import padded_states, s3prl_checkpoint, tiny_model
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.config.recipe import TeacherConfig
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.teachers import load_teacher
from s3prl_ekd.teachers.own_encoder import FastTeacher

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


@pytest.mark.parametrize(("kind", "large"), PRUNED)
def test_a_pruned_folder_by_either_forward(tmp_path, kind, large, utterances):
    """Its layers differ in size, and the last one is not computed."""
    student = pruned_student(kind, large=large)
    save_student(tmp_path / "student", student)
    config = TeacherConfig(name="t", layers=(0, 1, 2), transformers=str(tmp_path / "student"))
    fast, own = (
        load_teacher(dataclasses.replace(config, own_forward=forward), initializes=3) for forward in (False, True)
    )
    assert isinstance(fast, FastTeacher)
    assert not isinstance(own, FastTeacher)
    batch = pad_sequence(utterances, batch_first=True), torch.tensor([len(u) for u in utterances])
    with torch.no_grad():
        expected = student.encode(*batch).states[:3]
    for ours, theirs, wanted in zip(*(one.hidden_states(*batch).rows for one in (fast, own)), expected, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(theirs, wanted, atol=2e-5, rtol=0)
    assert fast.encoder_state().keys() == own.encoder_state().keys() == student.state_dict().keys()
    assert fast.describe() == own.describe()


@pytest.mark.parametrize("source", ["transformers", "s3prl"])
@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_same_numbers_by_either_forward(shelf, source, kind, large, utterances):
    config = entry(shelf, source, kind, large)
    fast, own = load_teacher(config), load_teacher(dataclasses.replace(config, own_forward=True))
    assert isinstance(fast, FastTeacher)
    assert not isinstance(own, FastTeacher)
    batch = pad_sequence(utterances, batch_first=True), torch.tensor([len(u) for u in utterances])
    (ours, frames), (theirs, expected_frames) = padded_states(fast, *batch), padded_states(own, *batch)
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
    teacher = load_teacher(dataclasses.replace(entry(shelf, source, "hubert", large), layers=(1,)), initializes=3)
    assert isinstance(teacher, FastTeacher)
    assert len(teacher.module.encoder.layers) == 1
    assert "encoder.layers.2.attention.k_proj.weight" in teacher.encoder_state()


def test_a_model_that_only_looks_alike_keeps_its_own_forward(shelf, tmp_path, caplog):
    model = tiny_model("hubert", hidden_act="relu")
    model.save_pretrained(tmp_path / "relu")
    config = TeacherConfig(name="relu", transformers=str(tmp_path / "relu"), layers=(1,))
    assert not isinstance(load_teacher(config), FastTeacher)

    from s3prl_ekd.teachers.own_encoder import accelerate

    own = load_teacher(dataclasses.replace(entry(shelf, "transformers", "hubert", False), own_forward=True))
    own.module.feature_projection.register_forward_hook(lambda module, inputs, output: output + 1)
    assert accelerate(own) is own
    assert "keeps its own forward" in caplog.text


def test_padded_pass_is_transformers_padded_pass(shelf):
    config = entry(shelf, "transformers", "hubert", False)
    fast, own = load_teacher(config), load_teacher(dataclasses.replace(config, own_forward=True))
    batch = pad_sequence([speech_like(16000), speech_like(9000, 1)], batch_first=True), torch.tensor([16000, 9000])
    fast.padded = own.padded = True
    for a, b in zip(padded_states(fast, *batch)[0], padded_states(own, *batch)[0], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


# Lengths at which s3prl's mask of padding has as many frames as the convolutions yield, and at which it has one more.
AWKWARD = ([16000, 12000], [36721, 15778, 30000, 20000], [16321, 9001, 401], [9000, 8999])


def padded_batch(lengths: list[int]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    waves = [speech_like(count, seed) for seed, count in enumerate(lengths)]
    return waves, pad_sequence(waves, batch_first=True), torch.tensor(lengths)


@pytest.mark.parametrize("own_forward", [False, True])
@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_padded_pass_is_that_of_s3prls_upstream(shelf, kind, large, own_forward):
    """On padded batches of awkward lengths, padding included: the targets of ``loss_on_padding``."""
    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    import s3prl.hub as hub

    config = entry(shelf, "s3prl", kind, large, own_forward=own_forward)
    upstream = getattr(hub, config.s3prl)(ckpt=config.ckpt).eval()
    teacher = load_teacher(config, padded=True)
    assert isinstance(teacher, FastTeacher) is not own_forward
    for lengths in AWKWARD:
        waves, batch, counts = padded_batch(lengths)
        with torch.no_grad():
            expected = upstream([wave.clone() for wave in waves])["hidden_states"]
        states, _ = padded_states(teacher, batch, counts)
        for layer, state in zip(config.layers, states, strict=True):
            torch.testing.assert_close(state, expected[layer], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_padded_pass_of_transformers_keeps_its_own_rule(shelf, kind):
    model = tiny_model(kind)
    teacher = load_teacher(entry(shelf, "transformers", kind, False), padded=True)
    assert isinstance(teacher, FastTeacher)
    for lengths in AWKWARD:
        _, batch, counts = padded_batch(lengths)
        mask = (torch.arange(max(lengths)) < counts.unsqueeze(1)).long()
        with torch.no_grad():
            expected = model(batch, attention_mask=mask, output_hidden_states=True).hidden_states
        for layer, state in zip((0, 1, 3), padded_states(teacher, batch, counts)[0], strict=True):
            torch.testing.assert_close(state, expected[layer], atol=2e-5, rtol=0)


def test_a_teacher_that_treats_padding_otherwise_is_admitted_only_where_nothing_is_padded(shelf, monkeypatch, caplog):
    from s3prl_ekd.teachers import own_encoder

    config = entry(shelf, "s3prl", "hubert", False)
    monkeypatch.setattr(
        own_encoder.FastTeacher, "_frames_of_chunks", lambda self, lengths, samples: self.module.frame_lengths(lengths)
    )
    assert isinstance(load_teacher(config), FastTeacher)
    assert not isinstance(load_teacher(config, padded=True), FastTeacher)
    assert "keeps its own forward: ours differs" in caplog.text


def tensors_in(thing: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """All tensors that an object holds on to, through attributes and containers."""
    if id(thing) in seen or isinstance(thing, type | types.ModuleType | types.FunctionType):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    for held in gc.get_referents(thing):
        yield from tensors_in(held, seen)


@pytest.mark.parametrize("source", ["transformers", "s3prl"])
def test_a_fast_teacher_weighs_what_its_encoder_weighs(shelf, source):
    """Neither the model that was replaced stays in memory, nor layers that nobody wants."""
    config = dataclasses.replace(entry(shelf, source, "wavlm", False), layers=(1,))

    def size_of(initializes: int) -> tuple[float, float]:
        teacher = load_teacher(config, initializes=initializes)
        assert isinstance(teacher, FastTeacher)
        own = sum(parameter.nbytes for parameter in teacher.module.parameters())
        held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors_in(teacher, set())}
        return own, sum(storage.nbytes() for storage in held.values())

    own, held = size_of(initializes=0)
    assert own <= held < 1.01 * own
    layer = sum(parameter.nbytes for parameter in tiny_model("wavlm").encoder.layers[1].parameters())
    own, held = size_of(initializes=2)  # a student of two layers starts from it
    assert own + layer <= held < 1.01 * own + layer


@pytest.mark.parametrize(("kind", "upstream"), [("hubert", "hf_hubert_custom"), ("wav2vec2", "hf_wav2vec2_custom")])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_s3prls_upstreams_of_transformers_models(shelf, tmp_path, kind, upstream, large, normalize):
    """They teach what transformers' own model gives on what its feature extractor makes of the waveform."""
    from transformers import Wav2Vec2FeatureExtractor

    tiny_model(kind, large=large).save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize)
    extractor.save_pretrained(tmp_path)
    layers = (0, 1, 2) if large else (0, 1, 3)
    config = TeacherConfig(name="t", s3prl=upstream, ckpt=str(tmp_path), layers=layers)
    waves, batch, counts = padded_batch([16000, 9001])
    for own_forward in (False, True):
        teacher = load_teacher(dataclasses.replace(config, own_forward=own_forward))
        assert isinstance(teacher, FastTeacher) is not own_forward
        states, frames = padded_states(teacher, batch, counts)
        for i, wave in enumerate(waves):
            heard = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values
            with torch.no_grad():
                alone = tiny_model(kind, large=large)(heard, output_hidden_states=True).hidden_states
            for layer, state in zip(layers, states, strict=True):
                torch.testing.assert_close(state[i, : frames[i]], alone[layer][0], atol=3e-5, rtol=0)


def test_whatever_surprises_our_encoder_leaves_the_teacher_as_it_is(shelf, monkeypatch, caplog):
    from s3prl_ekd.teachers import own_encoder

    config = entry(shelf, "s3prl", "hubert", False)
    for name in ("layout", "hubert_encoder", "_difference"):
        with monkeypatch.context() as patch, caplog.at_level("INFO"):
            patch.setattr(own_encoder, name, lambda *args, **options: {}["surprise"])
            assert not isinstance(load_teacher(config), FastTeacher)
        assert "keeps its own forward: KeyError (no entry 'surprise')" in caplog.text
        caplog.clear()
